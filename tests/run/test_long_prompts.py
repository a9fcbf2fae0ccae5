"""Runs with captions of several chunks: trained, drawn, exported and resumed with the same encoding."""

from __future__ import annotations

import json
import runpy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from projects import interrupt, make_project, run_project
from run.killing import made_files

from pivotune.pipeline.checks.recipe import check_recipe
from pivotune.pipeline.cli.plan import plan
from pivotune.pipeline.cli.tokens import tokens
from pivotune.pipeline.models.denoisers import DENOISERS
from pivotune.pipeline.models.load import load_model
from pivotune.pipeline.recipe.load import load_recipe
from pivotune.pipeline.recipe.model import Recipe
from pivotune.pipeline.run.samples import inject_files

LONG = "a " * 74 + "<cat> on the ring"  # two vectors: they are the first of the second chunk
PROMPT = 'samples.prompts=["' + LONG + ', red"]'


def project(folder: Path, family: str = "sd1", chunks: int = 2, **parts: str) -> Recipe:
    path = make_project(folder, family, LONG, model=f"prompt_chunks = {chunks}", **parts)
    (folder / "images" / "0.txt").write_text("a photo of <cat>", "utf-8")  # a batch of one and two chunks
    return load_recipe(path, [PROMPT, 'samples.negative="blue"'])


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_what_is_trained_is_what_is_drawn_and_what_the_script_encodes(tmp_path: Path, family: str) -> None:
    recipe = project(tmp_path, family)
    folder = run_project(recipe, tmp_path / "run").folder
    manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
    [encoders] = [one["encoders"] for one in manifest["embeddings"]]
    assert all(min(one["distance"]) > 0 for one in encoders.values())
    assert not any("truncated" in text for text in manifest["warnings"])
    made = runpy.run_path(str(folder / "exports/diffusers/load.py"))
    asked = [f"{LONG}, red", "a photo of <cat>", ""]
    states, pooled = made["encode"](*asked)
    assert states.shape[1] == 2 * 77
    model = load_model(recipe.model, torch.device("cpu"))
    injection = inject_files(model, {"<cat>": folder / "exports/tiny_embeddings/cat.safetensors"})
    injection.activate(asked)
    text = DENOISERS[model.family.denoiser_kind].encode(model.pipe, asked)
    assert torch.equal(text.states, states)
    assert text.pooled is None or torch.equal(text.pooled, pooled)
    plain = load_model(replace(recipe.model, prompt_chunks=1), torch.device("cpu"))
    assert DENOISERS[model.family.denoiser_kind].encode(plain.pipe, asked).states.shape[1] == 77
    how = {one: (folder / f"exports/{one}/HOW-TO.txt").read_text("utf-8") for one in ("a1111", "diffusers")}
    assert "captions of up to 150 tokens. Type prompts of any length: the program encodes long ones" in how["a1111"]
    assert "encode() in load.py reads long ones" in how["diffusers"]


@pytest.mark.parametrize(
    "frozen", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["embeddings", "cached captions"]
)
def test_a_run_of_long_captions_resumes_to_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, frozen: bool
) -> None:
    train = "embeddings = false\nlora = { rank = 2 }" if frozen else ""
    recipe = project(tmp_path, "sdxl", train=train, export="targets = []")
    whole = run_project(recipe, tmp_path / "whole").folder
    interrupt(monkeypatch, recipe, tmp_path / "parts")
    run_project(recipe, tmp_path / "parts")
    assert made_files(tmp_path / "parts") == made_files(whole)


def lines(recipe: Path, *sets: str) -> list[tuple[str, str]]:
    found = check_recipe(recipe, sets, tokens=True).problems
    return [(one.severity, one.text) for one in found if "token" in one.text or "chunk" in one.text]


def test_check_and_plan_count_against_all_chunks_and_offer_more(tmp_path: Path) -> None:
    recipe = project(tmp_path, chunks=1).path
    (tmp_path / "images" / "0.txt").write_text(LONG, "utf-8")
    (_, where), (_, long) = sorted(lines(recipe))
    assert where.endswith("(limit 75 tokens of clip_l); move it towards the start, or set model.prompt_chunks = 2")
    assert long.endswith("on average 4 tokens are cut; shorten them, or move what matters most to the start, or set "
                            "model.prompt_chunks = 2")  # fmt: skip
    assert lines(recipe, "model.prompt_chunks=2") == []
    three = "a " * 400 + "<cat>"
    (tmp_path / "images" / "0.txt").write_text(three, "utf-8")
    [text] = [text for _, text in lines(recipe, "model.prompt_chunks=2") if "before an embedding" in text]
    assert text.startswith("1 of 3 captions is truncated before an embedding")
    assert text.endswith("or set model.prompt_chunks = 4")
    assert not any("or set" in text for _, text in lines(recipe, "model.prompt_chunks=4"))
    shown = CliRunner().invoke(plan, [str(recipe), "--set", "model.prompt_chunks=3"]).output
    assert "clip_l 402 of 225 tokens" in shown
    assert "or set model.prompt_chunks = 4" in shown


def test_the_tokens_of_a_text_are_counted_against_all_chunks(tmp_path: Path) -> None:
    project(tmp_path)
    arguments = ["a " * 80, "--model", str(tmp_path / "model"), "--family", "sd1"]
    assert "clip_l: 80 of 75 tokens" in CliRunner().invoke(tokens, arguments).output
    assert "clip_l: 80 of 300 tokens" in CliRunner().invoke(tokens, [*arguments, "--prompt-chunks", "4"]).output


@pytest.mark.parametrize(("family", "limit"), [("flux", 512), ("sd3", 256), ("cascade", 77)])
def test_families_that_encode_a_prompt_at_once_are_refused(family: str, limit: int) -> None:
    def errors(**model: Any) -> list[str]:
        from pivotune.converters.families import families
        from pivotune.pipeline.checks.model import family_findings
        from pivotune.pipeline.recipe.model import ModelSpec

        spec = ModelSpec("micro", family, "float32", None, None, None, **model)
        return [one.text for one in family_findings(spec, families()[family])]

    (text,) = errors(prompt_chunks=2)
    assert text.endswith(f"encoded at once, up to {limit} tokens, and not in chunks of 75; remove it")
    assert errors() == []


def test_locality_is_refused(tmp_path: Path) -> None:
    recipe = project(tmp_path, train="lora = { rank = 2 }\nlocality = {}").path
    assert [text for text, _ in lines(recipe, "model.prompt_chunks=1")] != ["error", "error"]
    assert any("not supported with model.prompt_chunks > 1" in text for _, text in lines(recipe))
