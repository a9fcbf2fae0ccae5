"""LoRAs that a run exports for ComfyUI, in ComfyUI's own loader. Run by hand, with a checkout of ComfyUI:

    python tests/export/real_comfyui.py /path/to/ComfyUI

For each family both programs have a model with a few blocks in real sizes, without weights. All attention and
feed-forward layers of the diffusers pipeline get a random LoRA, which is exported and given to ComfyUI. It must patch
weights for every tensor, and what it adds to them must be as large as what peft adds. Prints a line a family: modules
of the pipeline, LoRAs in the file, weights that ComfyUI patches.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from types import SimpleNamespace

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))

from real_sizes import ENCODERS, TRANSFORMERS, pipeline
from stand_ins import StandIns

from pivotune.converters.families import Family, families
from pivotune.converters.programs import programs
from pivotune.pipeline.export.lora_layouts import for_program, settled
from pivotune.pipeline.tensors import from_raw, to_raw
from pivotune.pipeline.train.lora import lora_layers

ABSENT = ("torchvision", "torchaudio", "av", "kornia", "spandrel", "torchsde", "scipy", "comfy_kitchen", "comfy_aimdo",
          "sqlalchemy", "alembic", "simpleeval", "blake3", "pydantic", "aiohttp")  # fmt: skip
RANK, ALPHA = 2, 3.0


def main(source: str, *only: str) -> int:
    sys.argv = ["x", "--cpu"]
    sys.path.insert(0, source)
    sys.meta_path.append(StandIns(ABSENT))
    import comfy.options

    comfy.options.enable_args_parsing()
    failed = 0
    for name in only or TRANSFORMERS:
        for dora in (False, True):
            line, good = proof(name, dora)
            failed += not good
            print(f"{'ok  ' if good else 'BAD '} {name}{' (DoRA)' if dora else ''}: {line}")  # noqa: T201
    return int(failed > 0)


def proof(name: str, dora: bool) -> tuple[str, bool]:
    """A line for a family, and whether ComfyUI applied all of its LoRA."""
    import comfy.lora

    family, pipe = families()[name], pipeline(name)
    tensors = random_lora(family, pipe, dora)
    made = for_program(tensors, programs()["comfyui"], family, pipe) or tensors
    lora = {key: from_raw(raw).float() for key, raw in made.items()}
    keys, shapes = key_map(name)
    missing: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: missing.append(record.getMessage())
    logging.getLogger().addHandler(handler)
    patches = comfy.lora.load_lora(lora, keys)
    size = sum(patched(key, patch, shapes) for key, patch in patches.items())
    logging.getLogger().removeHandler(handler)
    modules = sum(key.endswith(".alpha") for key in tensors)
    own = sum(key.endswith((".lora_A.weight", ".lora_down.weight")) for key in made)
    wanted = expected(tensors)
    line = f"{modules} modules, {own} in the file, {len(patches)} applied"
    same = dora or abs(size / wanted - 1) < 1e-5
    if missing or not same:
        line += f"; adds {size:.6g} of {wanted:.6g}; {len(missing)} messages: {missing[:2]}"
    return line, not missing and same and own == len(patches)


def random_lora(family: Family, pipe: SimpleNamespace, dora: bool) -> dict:
    """Random tensors for all attention and feed-forward layers, as a run keeps them."""
    tensors = {}
    generator = torch.Generator().manual_seed(1)
    for attribute, prefix in family.lora_prefixes.items():
        part = getattr(pipe, attribute)
        for name in lora_layers(part, "attention+feed-forward"):
            layer = part.get_submodule(name)
            key = f"{prefix}_{name.removeprefix('text_model.').replace('.', '_')}"
            tensors[f"{key}.lora_down.weight"] = torch.randn(RANK, layer.in_features, generator=generator)
            tensors[f"{key}.lora_up.weight"] = torch.randn(layer.out_features, RANK, generator=generator)
            tensors[f"{key}.alpha"] = torch.tensor(ALPHA)
            if dora:
                tensors[f"{key}.dora_scale"] = torch.ones(layer.out_features, 1)
    return settled({name: to_raw(tensor) for name, tensor in tensors.items()})


def expected(tensors: dict) -> float:
    """The sum of squares of all that peft adds, without multiplying the large matrices out."""
    total = 0.0
    for name in tensors:
        if name.endswith(".lora_down.weight"):
            down = from_raw(tensors[name]).double()
            up = from_raw(tensors[name.replace("lora_down", "lora_up")]).double() * ALPHA / RANK
            total += float(((up.T @ up) * (down @ down.T)).sum())
    return total


def patched(key: str | tuple, patch: object, shapes: dict[str, torch.Size]) -> float:
    """The sum of squares of what ComfyUI adds to one weight."""
    import comfy.lora

    name, offset, function = (*key, None, None)[:3] if isinstance(key, tuple) else (key, None, None)
    weight = torch.zeros(shapes[name])
    weight = comfy.lora.calculate_weight([(1.0, patch, 1.0, offset, function)], weight, name)
    return float(weight.double().square().sum())


def key_map(name: str) -> tuple[dict, dict[str, torch.Size]]:
    """ComfyUI's names of a LoRA's modules for a model, and the shapes of its weights."""
    import comfy.lora
    import comfy.model_base

    base, build, config = TRANSFORMERS[name].comfyui()
    shapes = {f"diffusion_model.{key}": one.shape for key, one in build.state_dict().items()}
    kind = type("Fake", (getattr(comfy.model_base, base),), {"__init__": lambda self: None})
    model = kind.__new__(kind)
    object.__setattr__(model, "state_dict", lambda: shapes)
    object.__setattr__(model, "model_config", SimpleNamespace(unet_config=config))
    text = {}
    for encoder in families()[name].encoders:
        own, made = ENCODERS[encoder.key].comfyui()
        text |= {f"{own}.transformer.{key}": one.shape for key, one in made.state_dict().items()}
    keys = comfy.lora.model_lora_keys_unet(model, {})
    keys = comfy.lora.model_lora_keys_clip(SimpleNamespace(state_dict=lambda: text), keys)
    return keys, shapes | text


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))
