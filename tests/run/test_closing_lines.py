"""The lines under the table of a finished run say what its files are."""

from __future__ import annotations

from pathlib import Path

from projects import make_project, run_project

from pivotune.pipeline.recipe.load import load_recipe
from pivotune.pipeline.run.outcome import closing_lines


def listed_files(recipe: Path, out: Path, overrides: list[str]) -> dict[str, str]:
    summary = run_project(load_recipe(recipe, overrides), out).summary
    lines = [line for line in summary.splitlines() if line.startswith("  ") and ": exports/" in line]
    return dict(line.strip().split(": ", 1) for line in lines)


def test_packs_are_listed_as_embeddings(tmp_path):
    recipe = make_project(tmp_path, export='targets = ["diffusers"]')
    assert listed_files(recipe, tmp_path / "packs", ["export.files='pack'"]) == {
        "embeddings": "exports/tiny_embeddings/tiny_embeddings-0001.safetensors",
        "diffusers": "exports/diffusers/tiny_embeddings-0001.safetensors",
    }


def test_a_model_folder_is_listed_as_one_entry(tmp_path):
    parts = "[stage.finetune]\nparts = ['clip_l']\nlearning_rate = 1e-3"
    recipe = make_project(tmp_path, train=parts, export='targets = ["a1111"]')
    listed = listed_files(recipe, tmp_path / "run", [])
    assert listed == {
        "embeddings": "exports/tiny_embeddings/cat.safetensors",
        "model": "exports/tiny_model/, exports/tiny_model.safetensors",
        "a1111": "exports/a1111/cat.safetensors",
    }


def test_loras_for_all_and_for_one_program():
    def row(path: str, kind: str, program: str | None) -> dict:
        return {"path": path, "kind": kind, "program": program}

    rows = [
        row("exports/a1111.safetensors", "lora", None), row("exports/a1111/a1111.safetensors", "bundle", "a1111"),
        row("exports/diffusers/a1111_lora.safetensors", "lora", "diffusers"),
        row("exports/diffusers/HOW-TO.txt", "text", "diffusers"),
    ]  # fmt: skip
    assert closing_lines({"proofs": {}, "artefacts": rows}).splitlines()[2:] == [
        "  LoRA: exports/a1111.safetensors",
        "  a1111: exports/a1111/a1111.safetensors",
        "  diffusers: exports/diffusers/a1111_lora.safetensors",
    ]
