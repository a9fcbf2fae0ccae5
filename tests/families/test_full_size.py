"""The real sizes, on the meta device: parameters, widths, LoRA layers, and the memory estimate of every family.

Configurations are diffusers' and transformers' defaults or the published numbers.
"""

from __future__ import annotations

from typing import Any

import diffusers
import pytest
import torch
import transformers

from pivotune.converters.families import families
from pivotune.pipeline.checks.memory import CHECKPOINTED
from pivotune.pipeline.train.lora import lora_layers

HIDREAM = {
    "patch_size": 2, "in_channels": 16, "num_layers": 16, "num_single_layers": 32, "attention_head_dim": 128,
    "num_attention_heads": 20, "caption_channels": [4096, 4096], "text_emb_dim": 2048, "num_routed_experts": 4,
    "num_activated_experts": 2, "axes_dims_rope": (64, 32, 32), "max_resolution": (128, 128),
    "llama_layers": [*range(32), *[31] * 16],
}  # fmt: skip
# Of the 2B model of Cosmos-Predict2, which Anima was trained from.
ANIMA = {
    "num_attention_heads": 16, "attention_head_dim": 128, "num_layers": 28, "mlp_ratio": 4.0, "text_embed_dim": 1024,
    "adaln_lora_dim": 256, "rope_scale": (1.0, 4.0, 4.0), "concat_padding_mask": True, "extra_pos_embed_type": None,
}  # fmt: skip
CASCADE = {  # the rest are diffusers' defaults
    "clip_text_in_channels": 1280, "clip_text_pooled_in_channels": 1280, "clip_image_in_channels": 768,
    "switch_level": (False,),
}  # fmt: skip
CASCADE_LITE = CASCADE | {
    "conditioning_dim": 1536, "block_out_channels": (1536, 1536), "num_attention_heads": (24, 24),
    "down_num_layers_per_block": (4, 12), "up_num_layers_per_block": (12, 4),
}  # fmt: skip
# Class and configuration; billions of parameters; layers of a LoRA on the attention, and with the feed-forward layers.
DENOISERS: dict[str, tuple[str, dict[str, Any], float, int, int]] = {
    "flux": ("FluxTransformer2DModel", {"guidance_embeds": True}, 11.90, 266, 418),
    "chroma": ("ChromaTransformer2DModel", {}, 8.90, 266, 418),
    "flux2-dev": ("Flux2Transformer2DModel", {}, 32.2, 160, 192),
    "flux2-klein-4b": ("Flux2Transformer2DModel", {
        "num_layers": 5, "num_single_layers": 20, "num_attention_heads": 24, "joint_attention_dim": 7680,
        "guidance_embeds": False}, 3.88, 80, 100),
    "flux2-klein-9b": ("Flux2Transformer2DModel", {
        "num_layers": 8, "num_single_layers": 24, "num_attention_heads": 32, "joint_attention_dim": 12288,
        "guidance_embeds": False}, 9.08, 112, 144),
    "z-image": ("ZImageTransformer2DModel", {}, 6.15, 136, 238),
    "qwen-image": ("QwenImageTransformer2DModel", {}, 20.4, 480, 720),
    "sana": ("SanaTransformer2DModel", {}, 1.60, 160, 200),
    "pixart": ("PixArtTransformer2DModel", {"sample_size": 128, "norm_type": "ada_norm_single"}, 0.61, 224, 280),
    "lumina2": ("Lumina2Transformer2DModel", {"cap_feat_dim": 2304}, 2.61, 120, 210),
    "krea2": ("Krea2Transformer2DModel", {}, 12.8, 160, 256),
    "hidream": ("HiDreamImageTransformer2DModel", HIDREAM, 17.1, 256, 1024),
    "hunyuan-video": ("HunyuanVideoTransformer3DModel", {}, 12.8, 288, 452),
    "wan": ("WanTransformer3DModel", {}, 14.3, 320, 400),
    "anima": ("CosmosTransformer3DModel", ANIMA, 1.96, 224, 280),
    "cascade": ("StableCascadeUNet", CASCADE, 3.59, 256, 384),
}  # fmt: skip
T5 = {"d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64, "feed_forward_proj": "gated-gelu"}
QWEN3 = {"num_hidden_layers": 36, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128}
LLAMA = {
    "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
    "num_key_value_heads": 8, "vocab_size": 128256,
}  # fmt: skip
MISTRAL = {
    "model_type": "mistral", "vocab_size": 131072, "hidden_size": 5120, "intermediate_size": 32768,
    "num_hidden_layers": 40, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128,
}  # fmt: skip
ENCODERS: dict[str, tuple[str, dict[str, Any], float]] = {
    "clip_l": ("CLIPTextModel", {
        "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}, 0.12),
    "clip_g": ("CLIPTextModelWithProjection", {
        "hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20,
        "projection_dim": 1280}, 0.69),
    "t5": ("T5EncoderModel", T5, 4.76),
    "umt5xxl": ("UMT5EncoderModel", {**T5, "vocab_size": 256384}, 5.68),
    "gemma": ("Gemma2Model", {}, 2.61),
    "llama": ("LlamaForCausalLM", LLAMA, 8.03),
    "qwen3_06b": ("Qwen3Model", {
        **QWEN3, "num_hidden_layers": 28, "num_attention_heads": 16, "hidden_size": 1024, "intermediate_size": 3072},
        0.60),
    "qwen3_4b": ("Qwen3Model", {**QWEN3, "hidden_size": 2560, "intermediate_size": 9728}, 4.02),
    "qwen3_8b": ("Qwen3ForCausalLM", {**QWEN3, "hidden_size": 4096, "intermediate_size": 12288}, 8.19),
    "qwen25_7b": ("Qwen2_5_VLForConditionalGeneration", {"text_config": {
        "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28,
        "num_key_value_heads": 4, "vocab_size": 152064}, "vision_config": {
        "depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "out_hidden_size": 3584}}, 8.29),
    "qwen3vl_4b": ("Qwen3VLModel", {"text_config": {
        **QWEN3, "hidden_size": 2560, "intermediate_size": 9728, "vocab_size": 151936}}, 4.6),
    "mistral3_24b": ("Mistral3ForConditionalGeneration", {"text_config": MISTRAL}, 24.0),
}  # fmt: skip
# GB for an embedding alone in 16 bit: one image of 1024 pixels, gradient checkpointing, the VAE not counted.
MEMORY = {
    "flux": 37, "chroma": 31, "z-image": 24, "flux2-klein-4b": 19, "flux2-klein-9b": 39, "flux2-dev": 117,
    "qwen-image": 62, "krea2": 38, "sana": 11, "pixart": 14, "hidream": 66, "lumina2": 14,
    "anima": 8, "cascade": 11,
}  # fmt: skip
BESIDE = 1.5e9  # bytes that a process needs beside model and activations


def values(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.fixture(scope="module")
def denoiser_values() -> dict[str, int]:
    return {}


@pytest.mark.parametrize("family", DENOISERS)
def test_the_denoiser_has_its_size_and_the_lora_its_layers(family: str, denoiser_values: dict[str, int]) -> None:
    kind, config, billions, attention, both = DENOISERS[family]
    with torch.device("meta"):
        denoiser = getattr(diffusers, kind)(**config)
    denoiser_values[family] = values(denoiser)
    assert denoiser_values[family] / 1e9 == pytest.approx(billions, rel=0.01)
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
    kind, config, billions = ENCODERS[key]
    encoder = build_encoder(kind, config)
    assert values(encoder) / 1e9 == pytest.approx(billions, rel=0.04)
    width = encoder.get_input_embeddings().weight.shape[1]
    assert {family.widths[key] for family in families().values() if key in family.widths} == {width}


def build_encoder(kind: str, config: dict[str, Any]) -> Any:
    made = getattr(transformers, kind)
    with torch.device("meta"):
        return made(made.config_class(**config))


@pytest.mark.parametrize("family", MEMORY)
def test_the_memory_estimate_is_near_the_one_on_paper(family: str) -> None:
    about = families()[family]
    weights = DENOISERS[family][2] + sum(ENCODERS[encoder.key][2] for encoder in about.encoders)
    activations = about.step_activations_mib * 2**20 * CHECKPOINTED
    assert (2e9 * weights + activations + BESIDE) / 1e9 == pytest.approx(MEMORY[family], rel=0.05, abs=1.7)
