"""A run that trained weights of the model exports the model whole, with the embeddings beside it and in each
dialect.
"""

import json
import runpy

import pytest
import torch
from diffusers import StableDiffusionPipeline
from jsonschema import Draft202012Validator
from projects import make_project, run_project

from pivotune import schemas
from pivotune.pipeline.errors import StageError
from pivotune.pipeline.export import write
from pivotune.pipeline.run.context import RunState

TRAIN = '[stage.finetune]\nparts = ["denoiser", "clip_l"]\nlearning_rate = 1e-3'


@pytest.fixture
def finetuned(tmp_path, monkeypatch):
    """A project that tunes the UNet and the text encoder, and what they are when it exports."""
    kept = {}
    eject = RunState.eject

    def spy(state, model):
        eject(state, model)
        for name in ("unet", "text_encoder"):
            kept.setdefault(name, {key: one.clone() for key, one in getattr(model.pipe, name).state_dict().items()})

    monkeypatch.setattr(RunState, "eject", spy)

    def make(export=""):
        recipe = make_project(tmp_path, "sd1", train=TRAIN, export=export)
        run_project(recipe, tmp_path / "run")
        return tmp_path / "run", kept

    return make


def assert_tuned(pipe, weights):
    for name, state in weights.items():
        found = getattr(pipe, name).state_dict()
        assert found.keys() == state.keys()
        assert all(torch.equal(tensor, state[key]) for key, tensor in found.items())


def test_model_embeddings_and_texts_are_exported(finetuned):
    folder, weights = finetuned('model_dtype = "float32"\ntargets = ["a1111", "comfyui", "diffusers"]')
    exports = folder / "exports"
    manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
    assert [e.message for e in Draft202012Validator(schemas.schema("manifest.json")).iter_errors(manifest)] == []
    assert manifest["proofs"]["exports_verified"] == manifest["proofs"]["exports_declared"] == 6
    assert (exports / "tiny_embeddings" / "cat.safetensors").is_file()
    pipe = StableDiffusionPipeline.from_pretrained(exports / "tiny_model", local_files_only=True)
    assert_tuned(pipe, weights)
    one = StableDiffusionPipeline.from_single_file(
        str(exports / "tiny_model.safetensors"), config=str(folder.parent / "model"), local_files_only=True
    )
    assert_tuned(one, weights)
    before = StableDiffusionPipeline.from_pretrained(folder.parent / "model", local_files_only=True)
    for name in weights:
        assert any(not torch.equal(one, weights[name][key]) for key, one in getattr(before, name).state_dict().items())
    how_to = (exports / "a1111" / "HOW-TO.txt").read_text("utf-8")
    assert "Put ../tiny_model.safetensors into models/Stable-diffusion and choose it" in how_to
    assert "type  cat" in how_to
    assert "models/checkpoints" in (exports / "comfyui" / "HOW-TO.txt").read_text("utf-8")
    script = exports / "diffusers" / "load.py"
    assert "tiny_model" in script.read_text("utf-8")
    runpy.run_path(str(script))
    assert (script.parent / "try.png").is_file()


def test_the_model_can_be_a_folder_only(finetuned):
    folder, _ = finetuned('model = ["folder"]\ntargets = ["comfyui"]')
    assert not (folder / "exports" / "tiny_model.safetensors").exists()
    assert "../tiny_model is a folder for diffusers" in (folder / "exports" / "comfyui" / "HOW-TO.txt").read_text(
        "utf-8"
    )


def test_a_file_damaged_after_its_export_is_not_counted(finetuned, monkeypatch):
    kept = write.count_verified

    def damaged(context, declared):
        (context.folder / "exports" / "tiny_model" / "unet" / "config.json").unlink()
        return kept(context, declared)

    monkeypatch.setattr(write, "count_verified", damaged)
    with pytest.raises(StageError, match="6 files should be exported; verified: 5"):
        finetuned()
