"""A run that trained weights of the model exports the model whole, with the words beside it and in each dialect."""

import json
import runpy
import sys

import pytest
import torch
from diffusers import StableDiffusionPipeline
from jsonschema import Draft202012Validator
from projects import make_project, run_project

from pivotune import schemas
from pivotune.pipeline import stages
from pivotune.pipeline.errors import StageError


@pytest.fixture
def finetuned(tmp_path, monkeypatch):
    """A project whose train stage moves the UNet's weights too, and what they are then."""
    kept = {}

    def train(run, contents, **options):
        for parameter in run.model.pipe.unet.parameters():
            parameter.data += 0.01
        run.finetuned.add("unet")
        kept.update({name: tensor.clone() for name, tensor in run.model.pipe.unet.state_dict().items()})
        run.reached |= {word.placeholder for word in run.recipe.words}
        return contents

    monkeypatch.setitem(stages.STAGES, "train", train)

    def make(export=""):
        run_project(make_project(tmp_path, "sd1", export=export), tmp_path / "run")
        return tmp_path / "run", kept

    return make


def test_model_words_and_texts_are_all_there(finetuned):
    folder, weights = finetuned('model_dtype = "float32"\ntargets = ["a1111", "comfyui", "diffusers"]')
    exports = folder / "exports"
    manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
    assert [e.message for e in Draft202012Validator(schemas.schema("manifest.json")).iter_errors(manifest)] == []
    assert manifest["proofs"]["exports_verified"] == manifest["proofs"]["exports_declared"] == 6
    assert (exports / "tiny_embeddings" / "cat.safetensors").is_file()
    pipe = StableDiffusionPipeline.from_pretrained(exports / "tiny_model", local_files_only=True)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in pipe.unet.state_dict().items())
    one = StableDiffusionPipeline.from_single_file(
        str(exports / "tiny_model.safetensors"), config=str(folder.parent / "model"), local_files_only=True
    )
    assert all(torch.equal(tensor, weights[name]) for name, tensor in one.unet.state_dict().items())
    told = (exports / "a1111" / "HOW-TO.txt").read_text("utf-8")
    assert "../tiny_model.safetensors, to be put into models/Stable-diffusion" in told
    assert "type  cat" in told
    assert "models/checkpoints" in (exports / "comfyui" / "HOW-TO.txt").read_text("utf-8")
    script = exports / "diffusers" / "load.py"
    assert "tiny_model" in script.read_text("utf-8")
    runpy.run_path(str(script))
    assert (script.parent / "try.png").is_file()


def test_the_model_can_be_a_folder_only(finetuned):
    folder, _ = finetuned('model = ["folder"]\ntargets = ["comfyui"]')
    assert not (folder / "exports" / "tiny_model.safetensors").exists()
    assert "../tiny_model, to be put" in (folder / "exports" / "comfyui" / "HOW-TO.txt").read_text("utf-8")


def test_a_file_that_was_damaged_since_is_not_counted(finetuned, monkeypatch):
    export = sys.modules["pivotune.pipeline.stages.export"]
    kept = export.count

    def damaged(run, declared):
        (run.folder / "exports" / "tiny_model" / "unet" / "config.json").unlink()
        return kept(run, declared)

    monkeypatch.setattr(export, "count", damaged)
    with pytest.raises(StageError, match="6 exports are declared, 5 are there"):
        finetuned()
