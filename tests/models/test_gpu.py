"""Whole runs on an accelerator: what holds on a CPU holds there too. Skipped where there is none."""

import json

import pytest
import torch
from projects import before_eject, make_project, run_project

from pivotune.pipeline.device import pick_device
from pivotune.pipeline.errors import StageError
from pivotune.pipeline.models.load import load_model
from pivotune.pipeline.recipe.load import load_recipe
from pivotune.pipeline.run.samples import inject_files

DEVICE = "cuda"
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(DEVICE == "cuda" and not torch.cuda.is_available(), reason="no CUDA accelerator here"),
]
LORA = "lora = { rank = 2, learning_rate = 0.05 }"


@pytest.fixture(params=["sd1", "sdxl"])
def family(request):
    return request.param


def project(folder, family, dtype="float32", **parts):
    path = make_project(folder, family, **parts)
    return load_recipe(path, [f"device='{DEVICE}'", f"model.dtype='{dtype}'"])


def manifest_of(folder):
    return json.loads((folder / "manifest.json").read_text("utf-8"))


def files_of(folder):
    found = sorted((folder / "exports").rglob("*.safetensors"))
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("train", ["", LORA, LORA + "\ncaption_dropout = 0.65"])
def test_embeddings_are_trained_and_verified(tmp_path, family, dtype, train):
    run_project(project(tmp_path, family, dtype, train=train), tmp_path / "run")
    manifest = manifest_of(tmp_path / "run")
    assert manifest["status"] == "finished"
    assert manifest["environment"]["device"].startswith(DEVICE)
    proofs = manifest["proofs"]
    assert set(proofs["vocabulary_unchanged"].values()) == {True}
    assert len(proofs["vocabulary_unchanged"]) == (1 if family == "sd1" else 2)
    assert proofs["gradient_reached"] == {"<cat>": True}
    assert proofs["ejected_clean"] is True
    for facts in manifest["embeddings"][0]["encoders"].values():
        assert all(way > 0 for way in facts["distance"])
    assert {image["when"] for image in manifest["images"]} == {"before", "after"}


def test_the_exported_embeddings_are_those_that_were_trained(tmp_path, family, monkeypatch):
    trained = {}

    def look(state, model):
        if state.injection is not None:
            trained.update({key: rows.of("<cat>").detach().cpu().clone() for key, rows in state.injection.rows.items()})

    before_eject(monkeypatch, look)
    recipe = project(tmp_path, family)
    run_project(recipe, tmp_path / "run")
    path = tmp_path / "run" / "exports" / "tiny_embeddings" / "cat.safetensors"
    model = load_model(recipe.model, pick_device(DEVICE))
    injection = inject_files(model, {"<cat>": path})
    assert injection.rows.keys() == trained.keys()
    assert all(torch.equal(rows.of("<cat>").cpu(), trained[key]) for key, rows in injection.rows.items())


@pytest.mark.parametrize("train", ["", LORA])
def test_the_same_recipe_twice_gives_the_same_bytes(tmp_path, family, train):
    recipe = project(tmp_path, family, train=train)
    for name in ("one", "two"):
        run_project(recipe, tmp_path / name)
    files = files_of(tmp_path / "one")
    assert files
    assert files == files_of(tmp_path / "two")


def test_a_device_that_is_not_there_is_refused():
    with pytest.raises(StageError, match=r"there are .* of that kind, numbered from 0"):
        pick_device(f"{DEVICE}:99")
