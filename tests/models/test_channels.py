"""A denoiser takes the latents of its VAE and nothing else: inpainting and other models are refused before a run."""

import json

import pytest
import torch
from models.folders import edit_json, load, spec_of
from models.single_file import single_file
from projects import BUILD, make_project, runnable
from safetensors.torch import save_file
from tiny import tiny_sd, tiny_unet

from pivotune.pipeline.checks.recipe import check_recipe
from pivotune.pipeline.errors import StageError
from pivotune.pipeline.models.channels import check_channels, require_latent_channels

INPAINTING = r"takes 9 channels, of which the latents of its VAE are 4: an inpainting model, which cannot be trained"


def inpainting_model(channels=9):
    pipe = tiny_sd()
    pipe.unet = tiny_unet(32, in_channels=channels)
    return pipe


@pytest.mark.parametrize("name", runnable(BUILD))
def test_every_family_takes_the_latents_of_its_vae(name, tmp_path):
    BUILD[name]().save_pretrained(tmp_path / "model")
    check_channels(spec_of(tmp_path / "model", None), tmp_path / "model")


@pytest.mark.parametrize("kind", ["StableDiffusionPipeline", "StableDiffusionInpaintPipeline"])
def test_an_inpainting_folder_is_refused_by_check_and_on_loading(tmp_path, kind):
    recipe = make_project(tmp_path)
    inpainting_model().save_pretrained(tmp_path / "model")
    edit_json(tmp_path / "model" / "model_index.json", _class_name=kind)
    texts = [problem.text for problem in check_recipe(recipe).problems if problem.severity == "error"]
    assert len(texts) == 1
    with pytest.raises(StageError, match=INPAINTING) as caught:
        load(tmp_path / "model")
    assert texts == [str(caught.value)]
    assert "\n" not in texts[0]


@pytest.mark.parametrize("config", [True, False])
def test_an_inpainting_file_is_refused_by_check_and_on_loading(tmp_path, config):
    recipe = make_project(tmp_path)
    state = single_file(inpainting_model())
    save_file(state, tmp_path / "m.safetensors")
    more = 'base = "m.safetensors"\n' + 'config = "model"' * config
    recipe.write_text(recipe.read_text("utf-8").replace('base = "model"', more.strip()), "utf-8")
    texts = [problem.text for problem in check_recipe(recipe).problems if problem.severity == "error"]
    with pytest.raises(StageError, match=INPAINTING) as caught:
        load(tmp_path / "m.safetensors", config=str(tmp_path / "model") if config else None)
    assert texts == [str(caught.value)]


def test_an_inpainting_pickle_has_weights_of_another_shape(tmp_path):
    tiny_sd().save_pretrained(tmp_path / "model")
    torch.save({"state_dict": single_file(inpainting_model())}, tmp_path / "m.ckpt")
    expected = r"conv_in.weight has the shape \(8, 9, 3, 3\) instead of \(8, 4, 3, 3\): it is of another kind of model$"
    with pytest.raises(StageError, match=expected):
        load(tmp_path / "m.ckpt", config=str(tmp_path / "model"))


@pytest.mark.parametrize(
    ("channels", "latents", "packed", "expected"),
    [
        (9, 4, 1, "4: an inpainting model"),
        (5, 4, 1, "4: a model with a further input"),
        (384, 16, 2, "64: a model with a further input"),
        (36, 16, 1, "16: a model with a further input"),
        (64, 16, 1, "16: a model with a further input"),
        (4, 16, 1, "takes 4 channels, and the latents of its VAE have 16: they are of different models"),
        (16, 16, 2, "takes 16 channels, and the latents of its VAE have 64"),
    ],
)
def test_what_is_said_of_other_channels(channels, latents, packed, expected):
    with pytest.raises(StageError) as caught:
        require_latent_channels(spec_of("owner/name"), {"in_channels": channels}, {"latent_channels": latents}, packed)
    assert expected in str(caught.value)
    assert str(caught.value).startswith("model.base = 'owner/name': its denoiser takes")


def test_configs_that_say_nothing_are_left_to_loading(tmp_path):
    require_latent_channels(spec_of("owner/name"), {"in_channels": "9"}, {"latent_channels": 4}, 1)
    require_latent_channels(spec_of("owner/name"), {}, {}, 1)
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "X"}), "utf-8")
    check_channels(spec_of(tmp_path), tmp_path)
