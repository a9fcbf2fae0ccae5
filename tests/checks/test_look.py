"""Pre-flight checks: truncated embeddings, folders, images, disk and memory."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from projects import make_project, run_project

from pivotune.converters.tensor import RawTensor
from pivotune.pipeline.checks import disk, memory
from pivotune.pipeline.checks import preflight as look
from pivotune.pipeline.checks.memory import Memory
from pivotune.pipeline.checks.preflight import run_preflight
from pivotune.pipeline.errors import StageError
from pivotune.pipeline.recipe.load import load_recipe
from pivotune.pipeline.run import runner

CPU = torch.device("cpu")


@pytest.fixture
def without_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading a model fails the test."""

    def never(*args: object) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(runner, "load_model", never)


def test_the_manifest_has_the_preflight_facts_and_no_probe_file_is_left(tmp_path):
    run = run_project(make_project(tmp_path, captions="<cat> and <cat>, red"), tmp_path / "run").folder
    facts = json.loads((run / "manifest.json").read_text("utf-8"))["preflight"]
    assert (facts["captions"], facts["captions_with"], facts["captions_truncated"]) == (3, {"<cat>": 3}, 0)
    assert 0 < facts["longest_caption"]["clip_l"] < facts["token_limits"]["clip_l"]
    assert facts["images_decoded"] == 3
    assert not list(tmp_path.rglob(".probe"))
    written = sum(max(disk.FILE, path.stat().st_size) for path in run.rglob("*") if path.is_file())
    (room,) = facts["disk"]
    assert room["least"] <= written
    assert 0 < facts["memory"]["least"] <= facts["memory"]["most"]


def test_an_embedding_truncated_in_all_captions_is_an_error(tmp_path, without_model):
    recipe = make_project(tmp_path, captions="a ring " * 60 + "<cat>")
    with pytest.raises(StageError, match="all captions of <cat> are truncated before the embedding"):
        run_project(recipe, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_embedding_truncated_in_some_captions_is_a_warning(tmp_path):
    path = make_project(tmp_path)
    (tmp_path / "images/0.txt").write_text("a ring " * 60 + "<cat>", "utf-8")
    found = run_preflight(load_recipe(path), tmp_path / "run", CPU)
    assert found.errors == []
    assert found.warnings[0].startswith("1 of 3 captions is truncated before an embedding")
    assert found.facts["captions_truncated"] == 1


def test_truncated_prompts_and_names_that_are_tokens_are_reported(tmp_path):
    path = make_project(tmp_path)
    recipe = load_recipe(path, ["samples.prompts=['" + "red ring " * 60 + "']", "export.targets=['a1111', 'comfyui']"])
    recipe = replace(recipe, embeddings=(replace(recipe.embeddings[0], placeholder="<red>"),))
    found = run_preflight(recipe, tmp_path / "run", CPU)
    (truncated,) = found.warnings
    assert "is truncated: " in truncated
    (name,) = found.notes
    assert name.startswith("red: a token of the vocabulary, so a1111 would use the embedding")


@pytest.mark.parametrize(("tokens", "expected"), [(37, []), (38, ["<cat> takes 38 of the 75 tokens of clip_l"])])
def test_an_embedding_that_fills_half_of_a_prompt_is_a_warning(tmp_path, tokens, expected):
    recipe = load_recipe(make_project(tmp_path), [f"embedding.tokens={tokens}"])
    found = run_preflight(recipe, tmp_path / "run", CPU)
    assert [warning.partition(" in every prompt")[0] for warning in found.warnings] == expected


def test_a_truncated_image_is_reported_before_the_model_is_loaded(tmp_path, without_model):
    path = make_project(tmp_path)
    whole = (tmp_path / "images/1.png").read_bytes()
    (tmp_path / "images/1.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(StageError, match=r"images/1\.png: not a readable image"):
        run_project(path, tmp_path / "run")


def test_a_fine_tune_without_matching_layers_is_reported_before_the_model_is_loaded(tmp_path, without_model):
    path = make_project(tmp_path, train="finetune = { parts = ['denoiser'], layers = ['nowhere'] }")
    with pytest.raises(StageError, match="'nowhere'] matches no weight of denoiser"):
        run_project(path, tmp_path / "run")


def test_insufficient_disk_or_memory_stops_the_run_without_force(tmp_path, monkeypatch, without_model):
    path = make_project(tmp_path)
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda folder: type("", (), {"free": 10}))
    monkeypatch.setattr(memory, "device_memory", lambda device: (10, 1000))
    with pytest.raises(StageError) as caught:
        run_project(path, tmp_path / "run")
    lines = str(caught.value).splitlines()
    assert lines[0] == "pre-flight checks failed:"
    assert "10 B are free" in lines[1]
    assert "needed before the first image, 1e+03 B in total" in lines[2]
    assert "--force" in lines[3]
    with pytest.raises(AssertionError, match="the model was loaded"):
        run_project(path, tmp_path / "run", force=True)


def test_a_tight_disk_or_memory_is_a_warning():
    one = disk.Disk(Path("/"), least=10, most=100, written=0, free=50)
    assert [len(texts) for texts in disk.disk_problems([one])] == [0, 1]
    assert [len(texts) for texts in disk.disk_problems([replace(one, written=80)])] == [0, 0]
    assert [len(texts) for texts in disk.disk_problems([replace(one, free=9)])] == [1, 0]
    about = Memory(least=10, most=100, free=50, total=60)
    assert [len(texts) for texts in memory.memory_problems(about, CPU)] == [0, 1]
    assert [len(texts) for texts in memory.memory_problems(replace(about, free=100), CPU)] == [0, 0]
    assert [len(texts) for texts in memory.memory_problems(replace(about, total=9), CPU)] == [1, 0]


def test_the_memory_of_this_machine_is_known():
    free, total = memory.device_memory(CPU) or (0, 0)
    assert 2**20 < free <= total


def test_every_output_folder_is_tried_and_an_unwritable_cache_is_a_warning(tmp_path, monkeypatch):
    path = make_project(tmp_path, more="[data]\ncache_latents = 'notes.txt/latents'")
    (tmp_path / "notes.txt").write_text("x", "utf-8")
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    recipe = load_recipe(path)
    contents = [one.content for one in disk.output_folders(recipe, tmp_path / "run")]
    assert contents == ["run", "checkpoints", "encoded images"]
    found = run_preflight(recipe, tmp_path / "run", CPU)
    assert found.errors == []
    assert "cannot save encoded images" in found.warnings[0]
    refused = run_preflight(recipe, tmp_path / "notes.txt" / "run", CPU).errors
    assert refused[0].startswith("cannot save run: ")
    assert "Not a directory" in refused[0]


def test_a_disk_that_returns_other_bytes_is_reported(tmp_path, monkeypatch):
    read = disk.safetensors_file.read
    other = {"probe": RawTensor("F32", (1,), b"\0\0\0\0")}
    monkeypatch.setattr(disk.safetensors_file, "read", lambda path: (other, read(path)[1]))
    assert "returns other bytes" in str(disk.try_save(disk.OutputFolder("run", tmp_path / "new")))
    assert look.Preflight().errors == []


def test_on_the_cpu_the_process_counts_as_memory_in_use(tmp_path, monkeypatch, without_model):
    recipe = load_recipe(make_project(tmp_path))
    found = {}
    for used in (0, 2**30):
        monkeypatch.setattr(memory, "_process", lambda used=used: used)
        found[used] = run_preflight(recipe, tmp_path / "run", CPU).memory
    assert [found[2**30].least, found[2**30].most] == [2**30 + found[0].least, 2**30 + found[0].most]
