"""Which family a model is of, by class and width; or a question that names the choices."""

from types import SimpleNamespace

import pytest
import torch
from diffusers.configuration_utils import FrozenDict
from models.folders import edit_json, load, spec_of
from tiny import tiny_sd, tiny_sd2

from pivotune.converters.families import families
from pivotune.converters.lora import lora_metadata
from pivotune.pipeline.errors import StageError
from pivotune.pipeline.models.family import choose_family, native_resolution, size_multiple
from pivotune.pipeline.models.load import Model, prepare


@pytest.mark.parametrize("name", families())
def test_class_and_width_identify_the_family(name):
    family = families()[name]
    assert choose_family(spec_of("x", None), family.pipeline, family.cross_attention) is family
    assert choose_family(spec_of("x", name), family.pipeline, family.cross_attention) is family


def test_every_family_has_a_unique_class_and_width():
    marks = [(family.pipeline, family.cross_attention) for family in families().values()]
    assert len(set(marks)) == len(marks)


def test_an_unknown_width_is_an_error_with_the_possible_families():
    with pytest.raises(StageError, match=r"of width 32; set model\.family \(possible: sd1, sd2\)"):
        choose_family(spec_of("x", None), "StableDiffusionPipeline", 32)


def test_a_named_family_may_have_any_width_but_that_of_another():
    assert choose_family(spec_of("x", "sd2"), "StableDiffusionPipeline", 32).name == "sd2"
    with pytest.raises(StageError, match=r"'sd2', but x has the width of sd1 \(768\)"):
        choose_family(spec_of("x", "sd2"), "StableDiffusionPipeline", 768)


def test_a_family_of_another_class_is_refused():
    with pytest.raises(StageError, match=r"model\.family = 'sdxl', but x is a StableDiffusionPipeline"):
        choose_family(spec_of("x", "sdxl"), "StableDiffusionPipeline", 768)


@pytest.mark.parametrize("kind", ["AuraFlowPipeline", "StableDiffusionInpaintPipeline", None, ["a", "b"]])
def test_a_class_that_cannot_be_trained_is_refused_with_those_that_can(kind):
    with pytest.raises(StageError, match=r"which is not supported; supported: .*Stable Diffusion XL"):
        choose_family(spec_of("x", None), kind, 768)


def test_the_micro_model_is_of_the_family_of_its_class():
    assert choose_family(spec_of("micro", None), "StableDiffusionPipeline", 64).pipeline == "StableDiffusionPipeline"


def test_a_wrong_family_is_refused_before_any_weight_is_read(sd1_folder):
    for path in sd1_folder.rglob("*.safetensors"):
        path.unlink()
    with pytest.raises(StageError, match=r"model\.family = 'sdxl', but .* is a StableDiffusionPipeline"):
        load(sd1_folder, "sdxl")
    with pytest.raises(StageError, match=r"set model\.family \(possible: sd1, sd2\)"):
        load(sd1_folder, None)


def test_a_folder_of_full_width_has_its_family(sd1_folder):
    """Read from the config; the weights then do not fit, which is another error."""
    edit_json(sd1_folder / "unet" / "config.json", cross_attention_dim=768)
    with pytest.raises(StageError, match=r"\(in unet\)"):
        load(sd1_folder, None)


@pytest.mark.parametrize(
    ("build", "predicted"), [(tiny_sd, "stable-diffusion-v2-512"), (tiny_sd2, "stable-diffusion-v2-768-v")]
)
def test_the_two_models_of_sd2_are_distinguished_by_their_prediction(build, predicted):
    family = prepare(build(), spec_of("x", "sd2"), None, torch.device("cpu")).family
    assert family.modelspec == predicted
    metadata = lora_metadata(family, title="x", rank=1, alpha=1)
    assert metadata["modelspec.architecture"] == f"{predicted}/lora"
    assert metadata["modelspec.resolution"] == ("512x512" if build is tiny_sd else "768x768")


VAE = {"block_out_channels": [128, 256, 512, 512], "latent_channels": 4}
SIZES = {
    "unet": ({"sample_size": 64, "in_channels": 4}, 512, 8),
    "unet, inpainting": ({"sample_size": 64, "in_channels": 9}, 512, 8),
    "transformer with patches": ({"sample_size": 128, "in_channels": 4, "patch_size": 2}, 1024, 16),
    "transformer of packed latents": ({"in_channels": 16, "patch_size": 1}, 768, 16),
}


@pytest.mark.parametrize(("denoiser", "resolution", "multiple"), SIZES.values(), ids=SIZES)
def test_native_resolution_and_size_multiple(denoiser, resolution, multiple):
    sd2 = families()["sd2"]
    assert sd2.resolution == 768
    assert native_resolution(sd2, denoiser, VAE) == resolution
    assert size_multiple(denoiser, VAE) == multiple
    pipe = SimpleNamespace(
        unet=SimpleNamespace(config=FrozenDict(denoiser)), vae=SimpleNamespace(config=FrozenDict(VAE))
    )
    model = Model(pipe, sd2, (), None, torch.float32, torch.device("cpu"))
    assert (model.resolution, model.size_multiple) == (resolution, multiple)
