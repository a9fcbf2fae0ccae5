"""ComfyUI's LoRA loader, with its own models without weights; see real_loaders.py."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import torch
from real_common import patched, stand_in_for_comfyui
from real_models import CLIP_NAMES, native_unet, unet_config

from pivotune.converters.families import all_families

sys.path.append(str(Path(__file__).parents[1] / "export"))
from real_sizes import ENCODERS, TRANSFORMERS, Encoder, Transformer

ANIMA = {"max_img_h": 240, "max_img_w": 240, "max_frames": 128, "in_channels": 16, "out_channels": 16,
         "patch_spatial": 2, "patch_temporal": 1, "model_channels": 2048, "num_blocks": 1, "num_heads": 16,
         "use_adaln_lora": True, "pos_emb_cls": "rope3d"}  # fmt: skip
BODIES = {**TRANSFORMERS, "anima": Transformer("", {}, "Anima", "anima.model", "Anima", ANIMA)}
TEXTS = {**ENCODERS, "qwen3_06b": Encoder(torch.nn.Module, "qwen3_06b", "text_encoders.llama", "Qwen3_06B",
                                          {"num_hidden_layers": 1})}  # fmt: skip


def comfyui(source: Path):
    """How many modules of a model and of its text encoders are patched."""
    stand_in_for_comfyui()
    import comfy.lora
    import comfy.lora_convert
    import comfy.utils

    models: dict = {}

    def drive(family, tensors, path):
        if family not in models:
            models[family] = _transformer(family) if family in BODIES else _unet(family, comfy.utils)
        model, text = models[family]
        keys = comfy.lora.model_lora_keys_unet(model, {})
        keys = comfy.lora.model_lora_keys_clip(SimpleNamespace(state_dict=lambda: text), keys)
        return patched(comfy.lora.load_lora(comfy.lora_convert.convert_lora(tensors), keys))

    return drive


def _transformer(family: str):
    """A stand-in for a loaded model, with the names of its weights and its configuration; and its text encoders'."""
    import comfy.model_base

    base, body, config = BODIES[family].comfyui()
    texts = [TEXTS[encoder.key].comfyui() for encoder in all_families()[family].encoders]
    text = {f"{name}.transformer.{key}" for name, model in texts for key in model.state_dict()}
    return _model(getattr(comfy.model_base, base), body.state_dict(), config), dict.fromkeys(text)


def _unet(family: str, utils: object):
    text = [name for name in CLIP_NAMES if family == "sdxl" or name.startswith("clip_l")]
    return _model(object, native_unet(family, utils), unet_config(family)), dict.fromkeys(text)


def _model(base, names, config):
    names = dict.fromkeys([f"diffusion_model.{name}" for name in names])
    made = type("Fake", (base,), {"__init__": lambda self: None, "state_dict": lambda self: names})()
    object.__setattr__(made, "model_config", SimpleNamespace(unet_config=config))
    return made
