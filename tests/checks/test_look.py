"""What is found out before a model is loaded: embeddings that nobody sees, folders, images, disk and memory."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from projects import make_project, run_project

from pivotune.converters.tensor import RawTensor
from pivotune.pipeline.checks import disk, memory
from pivotune.pipeline.checks import disk as places
from pivotune.pipeline.checks import preflight as look
from pivotune.pipeline.checks.memory import Memory
from pivotune.pipeline.checks.preflight import run_preflight
from pivotune.pipeline.errors import StageError
from pivotune.pipeline.recipe.load import load_recipe
from pivotune.pipeline.run import runner

CPU = torch.device("cpu")


@pytest.fixture
def unloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading a model is too late."""

    def never(*args: object) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(runner, "load_model", never)


def test_a_run_keeps_what_was_found_and_leaves_nothing_behind(tmp_path):
    run = run_project(make_project(tmp_path, captions="<cat> and <cat>, red"), tmp_path / "run").folder
    facts = json.loads((run / "manifest.json").read_text("utf-8"))["preflight"]
    assert (facts["captions"], facts["captions_with"], facts["captions_cut"]) == (3, {"<cat>": 3}, 0)
    assert 0 < facts["longest_caption"]["clip_l"] < facts["token_limits"]["clip_l"]
    assert facts["images_decoded"] == 3
    assert not list(tmp_path.rglob(".probe"))
    written = sum(max(disk.FILE, path.stat().st_size) for path in run.rglob("*") if path.is_file())
    (room,) = facts["disk"]
    assert room["least"] <= written
    assert 0 < facts["memory"]["least"] <= facts["memory"]["most"]


def test_a_embedding_behind_the_token_limit_everywhere_is_an_error(tmp_path, unloaded):
    recipe = make_project(tmp_path, captions="a ring " * 60 + "<cat>")
    with pytest.raises(StageError, match="behind the token limit in every caption that holds them: <cat>"):
        run_project(recipe, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_embedding_behind_the_token_limit_somewhere_is_a_warning(tmp_path):
    path = make_project(tmp_path)
    (tmp_path / "images/0.txt").write_text("a ring " * 60 + "<cat>", "utf-8")
    found = run_preflight(load_recipe(path), tmp_path / "run", CPU)
    assert found.errors == []
    assert found.warnings[0].startswith("in 1 of 3 captions an embedding stands behind the token limit")
    assert found.facts["captions_cut"] == 1


def test_prompts_that_are_cut_and_names_that_are_embeddings_are_said(tmp_path):
    path = make_project(tmp_path)
    recipe = load_recipe(path, ["samples.prompts=['" + "red ring " * 60 + "']", "export.targets=['a1111', 'comfyui']"])
    recipe = replace(recipe, embeddings=(replace(recipe.embeddings[0], placeholder="<red>"),))
    found = run_preflight(recipe, tmp_path / "run", CPU)
    (cut,) = found.warnings
    assert "is cut off: clip_l reads" in cut
    (name,) = found.notes
    assert name.startswith("the model knows red as an embedding of its own, which a1111 would take for the new one")


@pytest.mark.parametrize(("tokens", "said"), [(37, []), (38, ["<cat> takes 38 of the 75 tokens that clip_l reads"])])
def test_a_embedding_that_fills_half_of_a_prompt_is_pointed_out(tmp_path, tokens, said):
    recipe = load_recipe(make_project(tmp_path), [f"embedding.tokens={tokens}"])
    found = run_preflight(recipe, tmp_path / "run", CPU)
    assert [warning.partition(" of every prompt")[0] for warning in found.warnings] == said


def test_a_image_that_is_cut_off_is_named_before_the_model_is_loaded(tmp_path, unloaded):
    path = make_project(tmp_path)
    whole = (tmp_path / "images/1.png").read_bytes()
    (tmp_path / "images/1.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(StageError, match=r"images/1\.png: not a readable image"):
        run_project(path, tmp_path / "run")


def test_what_no_stage_could_do_is_said_before_the_model_is_loaded(tmp_path, unloaded):
    path = make_project(tmp_path, train="finetune = { parts = ['denoiser'], layers = ['nowhere'] }")
    with pytest.raises(StageError, match="'nowhere'] fits no weight of denoiser"):
        run_project(path, tmp_path / "run")


def test_disk_and_memory_that_cannot_be_enough_stop_the_run_unless_it_is_to_go_on(tmp_path, monkeypatch, unloaded):
    path = make_project(tmp_path)
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda folder: type("", (), {"free": 10}))
    monkeypatch.setattr(memory, "device_memory", lambda device: (10, 1000))
    with pytest.raises(StageError) as caught:
        run_project(path, tmp_path / "run")
    lines = str(caught.value).splitlines()
    assert lines[0] == "this run cannot come to its end:"
    assert "10 B are free, and the run writes" in lines[1]
    assert "this machine's memory is 1e+03 B, and the model with what is trained takes" in lines[2]
    assert "--force" in lines[3]
    with pytest.raises(AssertionError, match="the model was loaded"):
        run_project(path, tmp_path / "run", force=True)


def test_a_tight_disk_or_memory_is_a_warning():
    room = disk.Room(Path("/"), least=10, most=100, there=0, free=50)
    assert [len(texts) for texts in disk.room_findings([room])] == [0, 1]
    assert [len(texts) for texts in disk.room_findings([replace(room, there=80)])] == [0, 0]
    assert [len(texts) for texts in disk.room_findings([replace(room, free=9)])] == [1, 0]
    about = Memory(least=10, most=100, free=50, total=60)
    assert [len(texts) for texts in memory.memory_findings(about, CPU)] == [0, 1]
    assert [len(texts) for texts in memory.memory_findings(replace(about, free=100), CPU)] == [0, 0]
    assert [len(texts) for texts in memory.memory_findings(replace(about, total=9), CPU)] == [1, 0]


def test_this_machine_tells_its_memory():
    free, total = memory.device_memory(CPU) or (0, 0)
    assert 2**20 < free <= total


def test_every_folder_is_tried_and_a_cache_is_done_without(tmp_path, monkeypatch):
    path = make_project(tmp_path, more="[data]\ncache_latents = 'notes.txt/latents'")
    (tmp_path / "notes.txt").write_text("x", "utf-8")
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    recipe = load_recipe(path)
    whats = [place.what for place in places.places_of(recipe, tmp_path / "run")]
    assert whats == ["run", "checkpoints", "encoded images"]
    found = run_preflight(recipe, tmp_path / "run", CPU)
    assert found.errors == []
    assert "encoded images cannot be saved" in found.warnings[0]
    refused = run_preflight(recipe, tmp_path / "notes.txt" / "run", CPU).errors
    assert refused[0].startswith("run cannot be saved: ")
    assert "Not a directory" in refused[0]


def test_a_save_that_comes_back_otherwise_is_said(tmp_path, monkeypatch):
    read = places.safetensors_file.read
    other = {"probe": RawTensor("F32", (1,), b"\0\0\0\0")}
    monkeypatch.setattr(places.safetensors_file, "read", lambda path: (other, read(path)[1]))
    assert "gives back other bytes" in str(places.try_save(places.Place("run", tmp_path / "new")))
    assert look.Preflight().errors == []
