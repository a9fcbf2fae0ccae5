"""LoRA files of every layout and kind for real_programs.py, with names and shapes of real modules."""

from __future__ import annotations

import struct
from math import prod
from pathlib import Path

import real_families
from lora_files import KINDS
from real_families import FLUX, FLUX_NATIVE

from pivotune.converters.safetensors_file import write
from pivotune.converters.tensor import RawTensor

# Modules of each model by diffusers' name: (outputs, inputs); and by Stability's name.
UNETS = {
    "sd1": {
        "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k": (320, 768),
        "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q": (320, 320),
        "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_out.0": (320, 320),
        "down_blocks.0.attentions.0.transformer_blocks.0.ff.net.2": (320, 1280),
    },
    "sdxl": {
        "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k": (640, 2048),
        "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q": (640, 640),
        "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_out.0": (640, 640),
        "down_blocks.1.attentions.0.transformer_blocks.0.ff.net.2": (640, 2560),
    },
}
BLOCKS = {"sd1": ("down_blocks.0.attentions.0", "input_blocks.1.1"),
          "sdxl": ("down_blocks.1.attentions.0", "input_blocks.4.1")}  # fmt: skip
TEXT = {"encoder.layers.0.self_attn.q_proj": (768, 768), "encoder.layers.0.mlp.fc1": (3072, 768)}
TUCKER = {"lora_down.weight": (4, 320, 1, 1), "lora_mid.weight": (4, 4, 3, 3), "lora_up.weight": (320, 4, 1, 1)}
KOHYA = {"down": "lora_down.weight", "up": "lora_up.weight"}
PEFT = {"down": "lora_A.weight", "up": "lora_B.weight"}


def write_all(folder: Path) -> dict[str, tuple[str, Path]]:
    """Sample to family and file."""
    found = {}
    for name, (family, shapes) in samples().items():
        path = folder / f"{name.replace(' ', '_').replace(',', '')}.safetensors"
        write(path, {key: _tensor(shape) for key, shape in shapes.items()}, {})
        found[path.stem] = (family, path)
    return found


def samples() -> dict[str, tuple[str, dict]]:
    """Sample to family, and names and shapes (None: a number)."""
    found: dict[str, tuple[str, dict]] = {}
    for family, modules in UNETS.items():
        ours, theirs = BLOCKS[family]
        native = {name.replace(ours, theirs): shape for name, shape in modules.items()}
        flat = {name.replace(".", "_"): shape for name, shape in modules.items()}
        te = "lora_te_text_model_" if family == "sd1" else "lora_te1_text_model_"
        text = {te + name.replace(".", "_"): shape for name, shape in TEXT.items()}
        dotted = {f"text_encoder.text_model.{name}": shape for name, shape in TEXT.items()}
        old = {name.replace(".to_out.0", ".to_out").replace(".to_", ".processor.to_") + "_lora": shape
               for name, shape in modules.items() if "attn" in name}  # fmt: skip
        layouts = {
            "kohya": _lora(_with("lora_unet_", flat) | text, KOHYA, alpha=True),
            "kohya without alpha": _lora(_with("lora_unet_", flat), KOHYA),
            "sgm": _lora(_with("lora_unet_", {n.replace(".", "_"): s for n, s in native.items()}) | text, KOHYA, True),
            "peft": _lora(_with("unet.", modules) | dotted, PEFT),
            "peft default": _lora(_with("unet.", modules), {
                "down": "lora_A.default.weight", "up": "lora_B.default.weight"}),
            "diffusers old": _lora(_with("unet.", old), {"down": "down.weight", "up": "up.weight"}),
            "comfyui": _lora(_with("diffusion_model.", native), KOHYA, alpha=True),
            "comfyui peft": _lora(_with("diffusion_model.", native), PEFT),
            "original": _lora(native, PEFT),
            "lycoris": _lora(_with("lycoris_", flat), KOHYA, alpha=True),
            "base model": _lora(_with("base_model.model.", modules), PEFT),
        }  # fmt: skip
        found |= {f"{family} {name}": (family, shapes) for name, shapes in layouts.items()}
        first = next(iter(_with("lora_unet_", flat)))
        outputs, inputs = next(iter(modules.values()))
        for kind, parts in KINDS.items():
            scaled = {part: _scaled(shape, outputs, inputs) for part, shape in parts.items()}
            found[f"{family} {kind}"] = (family, {f"{first}.{part}": shape for part, shape in scaled.items()})
        conv = "lora_unet_down_blocks_0_resnets_0_conv1"
        found[f"{family} LoCon with lora_mid"] = (family, {f"{conv}.{part}": shape for part, shape in TUCKER.items()})
        found[f"{family} DoRA"] = (family, found[f"{family} LoRA"][1] | {f"{first}.dora_scale": (outputs, 1)})
        found[f"{family} bundle"] = (family, layouts["kohya"] | {"bundle_emb.cat.clip_l": (2, 768)})
    return found | _flux_samples() | real_families.samples()


def _flux_samples() -> dict[str, tuple[str, dict]]:
    """The same for the layouts of FLUX.1."""
    return {
        "flux kohya": ("flux", _lora(_with("lora_unet_", _flat(FLUX_NATIVE)), KOHYA, alpha=True)),
        "flux kohya with text": ("flux", _lora(_with("lora_unet_", _flat(FLUX_NATIVE)) | _with(
            "lora_te1_text_model_", _flat(TEXT)), KOHYA, alpha=True)),
        "flux kohya bundle": ("flux", _lora(_with("lora_unet_", _flat(FLUX_NATIVE)), KOHYA, alpha=True) | {
            "bundle_emb.cat.clip_l": (2, 768)}),
        "flux peft": ("flux", _lora(_with("transformer.", FLUX), PEFT)),
        "flux onetrainer": ("flux", _lora(_with("lora_transformer_", _flat(FLUX)), KOHYA, alpha=True)),
        "flux comfyui": ("flux", _lora(_with("diffusion_model.", FLUX_NATIVE), PEFT)),
        "flux kohya of diffusers": ("flux", _lora(_with("lora_unet_", _flat(FLUX)), KOHYA, alpha=True)),
        "flux comfyui of diffusers": ("flux", _lora(_with("diffusion_model.", FLUX), PEFT)),
        "flux native of transformer": ("flux", _lora(_with("transformer.", FLUX_NATIVE), PEFT)),
        "flux comfyui alpha": ("flux", _lora(_with("diffusion_model.", FLUX_NATIVE), KOHYA, alpha=True)),
        "flux original": ("flux", _lora(FLUX_NATIVE, PEFT)),
        "flux lycoris": ("flux", _lora(_with("lycoris_", _flat(FLUX)), KOHYA, alpha=True)),
    }  # fmt: skip


def _with(prefix: str, modules: dict) -> dict:
    return {prefix + name: shape for name, shape in modules.items()}


def _flat(modules: dict) -> dict:
    return {name.replace(".", "_"): shape for name, shape in modules.items()}


def _lora(modules: dict, parts: dict[str, str], alpha: bool = False) -> dict:
    found: dict = {}
    for name, (outputs, inputs) in modules.items():
        found[f"{name}.{parts['down']}"], found[f"{name}.{parts['up']}"] = (4, inputs), (outputs, 4)
        if alpha:
            found[f"{name}.alpha"] = None
    return found


def _scaled(shape: tuple | None, outputs: int, inputs: int) -> tuple | None:
    """A shape of KINDS (320 outputs, 768 inputs) for a module of another size."""
    sizes = {320: outputs, 768: inputs, 80: outputs // 4, 20: outputs // 16, 48: inputs // 16}
    return None if shape is None else tuple(sizes.get(size, size) for size in shape if size)


def _tensor(shape: tuple | None) -> RawTensor:
    if shape is None:
        return RawTensor("F32", (), struct.pack("<f", 4))
    return RawTensor("F32", shape, struct.pack("<f", 0.01) * prod(shape))
