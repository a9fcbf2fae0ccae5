"""The real sizes, on the meta device: parameters, widths, LoRA layers, and the memory estimate of every family.

Configurations are those of `full_size.json`: diffusers' and transformers' defaults or the published numbers.
"""

from __future__ import annotations

from typing import Any

import diffusers
import pytest
import torch

from pivotune.converters.families import families
from pivotune.pipeline.checks.memory import CHECKPOINTED
from pivotune.pipeline.models.full_size import build, full_size
from pivotune.pipeline.recipe.model import ModelSpec
from pivotune.pipeline.train.lora import lora_layers

CASCADE_LITE = {
    "clip_text_in_channels": 1280, "clip_text_pooled_in_channels": 1280, "clip_image_in_channels": 768,
    "switch_level": (False,), "conditioning_dim": 1536, "block_out_channels": (1536, 1536),
    "num_attention_heads": (24, 24), "down_num_layers_per_block": (4, 12), "up_num_layers_per_block": (12, 4),
}  # fmt: skip
# Billions of parameters; layers of a LoRA on the attention, and with the feed-forward layers.
DENOISERS = {
    "flux": (11.90, 266, 418), "chroma": (8.90, 266, 418), "flux2-dev": (32.2, 160, 192),
    "flux2-klein-4b": (3.88, 80, 100), "flux2-klein-9b": (9.08, 112, 144), "z-image": (6.15, 136, 238),
    "qwen-image": (20.4, 480, 720), "sana": (1.60, 160, 200), "pixart": (0.61, 224, 280), "lumina2": (2.61, 120, 210),
    "krea2": (12.8, 160, 256), "hidream": (17.1, 256, 1024), "hunyuan-video": (12.8, 288, 452), "wan": (14.3, 320, 400),
    "anima": (1.96, 224, 280), "cascade": (3.59, 256, 384), "sd1": (0.860, 128, 160), "sd2": (0.866, 128, 160),
    "sdxl": (2.567, 560, 700), "sd3": (2.24, 243, 337),
}  # fmt: skip
ENCODERS = {
    "clip_l": 0.12, "clip_g": 0.69, "clip_h": 0.34, "t5": 4.76, "umt5xxl": 5.68, "gemma": 2.61, "llama": 8.03,
    "qwen3_06b": 0.60, "qwen3_4b": 4.02, "qwen3_8b": 8.19, "qwen25_7b": 8.29, "qwen3vl_4b": 4.6, "mistral3_24b": 24.0,
}  # fmt: skip
VAES = {"flux2-dev": 0.084, "hunyuan-video": 0.246, "qwen-image": 0.127, "sana": 0.312, "sdxl": 0.0837, "wan": 0.127}
# GB for an embedding alone in 16 bit: one image of 1024 pixels, gradient checkpointing, the VAE not counted.
MEMORY = {
    "flux": 37, "chroma": 31, "z-image": 24, "flux2-klein-4b": 19, "flux2-klein-9b": 39, "flux2-dev": 117,
    "qwen-image": 62, "krea2": 38, "sana": 11, "pixart": 14, "hidream": 66, "lumina2": 14,
    "anima": 8, "cascade": 11,
}  # fmt: skip
BESIDE = 1.5e9  # bytes that a process needs beside model and activations


def values(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("family", DENOISERS)
def test_the_denoiser_has_its_size_and_the_lora_its_layers(family: str) -> None:
    billions, attention, both = DENOISERS[family]
    denoiser: Any = build("denoisers", family)
    assert values(denoiser) / 1e9 == pytest.approx(billions, rel=0.01)
    assert len(lora_layers(denoiser, "attention")) == attention
    assert len(lora_layers(denoiser, "attention+feed-forward")) == both
    about = families()[family]
    stated = denoiser.config.get(about.denoiser_width)
    assert stated == about.cross_attention or (family == "pixart" and stated is None)


def test_the_lite_prior_of_stable_cascade_has_its_size_and_layers() -> None:
    with torch.device("meta"):
        prior = diffusers.StableCascadeUNet(**CASCADE_LITE)
    assert values(prior) / 1e9 == pytest.approx(1.03, rel=0.01)
    assert len(lora_layers(prior, "attention")) == 4 * 32


@pytest.mark.parametrize("key", ENCODERS)
def test_the_encoder_has_its_size_and_the_width_of_its_families(key: str) -> None:
    encoder: Any = build("encoders", key)
    assert values(encoder) / 1e9 == pytest.approx(ENCODERS[key], rel=0.04)
    width = encoder.get_input_embeddings().weight.shape[1]
    assert {family.widths[key] for family in families().values() if key in family.widths} == {width}


@pytest.mark.parametrize("family", VAES)
def test_the_vae_has_its_size(family: str) -> None:
    assert values(build("vaes", family)) / 1e9 == pytest.approx(VAES[family], rel=0.01)


@pytest.mark.parametrize("family", families())
def test_every_family_has_a_model_of_full_size(family: str) -> None:
    model = full_size(families()[family], ModelSpec("any/model", family, "bfloat16", None, None, None))
    assert family in DENOISERS
    assert [encoder.key for encoder in model.encoders] == list(families()[family].widths)
    assert model.resolution in (512, 720, 768, 1024)


@pytest.mark.parametrize("family", MEMORY)
def test_the_memory_estimate_is_near_the_one_on_paper(family: str) -> None:
    about = families()[family]
    weights = DENOISERS[family][0] + sum(ENCODERS[encoder.key] for encoder in about.encoders)
    activations = about.step_activations_mib * 2**20 * CHECKPOINTED
    assert (2e9 * weights + activations + BESIDE) / 1e9 == pytest.approx(MEMORY[family], rel=0.05, abs=1.7)
