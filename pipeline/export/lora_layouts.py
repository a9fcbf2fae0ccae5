"""A LoRA's tensors with the names that each program reads.

A run keeps its LoRA in kohya's layout with diffusers' module names (`lora_unet_down_blocks_…`,
`lora_te1_text_model_…`), which A1111, Forge, SD.Next, ComfyUI, InvokeAI and OneTrainer read. Three cases differ.
Kohya's scripts know SDXL's blocks by Stability's names only. diffusers reads kohya's layout, but drops `dora_scale`,
and the attention of text encoders when their `out_proj` has no LoRA: it gets PEFT's layout. So does A1111 for SD3,
whose loader wants two dots in every name.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from ...converters.families import Family
from ...converters.programs import Program
from ...converters.tensor import RawTensor
from ..errors import StageError
from ..tensors import from_raw, to_raw
from .layouts import sgm_module, unet_shape

Tensors = Mapping[str, RawTensor]
SCALE = "dora_scale"


def has_dora(tensors: Iterable[str]) -> bool:
    """Whether the LoRA has trained magnitudes (DoRA)."""
    return any(name.endswith(f".{SCALE}") for name in tensors)


def settled(tensors: Tensors) -> dict[str, RawTensor]:
    """Names that all programs know: CLIP's encoders with `text_model_`, a DoRA's magnitudes as a column.

    transformers 5.6 and later name the modules of CLIP without that level; older programs reject those. The blocks of
    T5 (`encoder_block_…`) never had it.
    """
    return {
        re.sub(r"^(lora_te\d?_)(?=encoder_layers_)", r"\1text_model_", name): _column(name, raw, tensors)
        for name, raw in tensors.items()
    }


def _column(name: str, raw: RawTensor, tensors: Tensors) -> RawTensor:
    if not name.endswith(f".{SCALE}"):
        return raw
    up = tensors[name.removesuffix(SCALE) + "lora_up.weight"]
    return RawTensor(raw.dtype, (up.shape[0], *[1] * (len(up.shape) - 1)), raw.stored)


def for_program(tensors: Tensors, program: Program, family: Family, pipe: Any) -> dict[str, RawTensor] | None:
    """The tensors in the layout of `program`, or None where it reads them as they are."""
    layout = program.lora_layouts.get(family.name, program.lora_layouts.get("*"))
    return LAYOUTS[layout](tensors, family, pipe) if layout is not None else None


def ignored_parts(tensors: Tensors, program: Program) -> list[str]:
    """Parts of the LoRA that the program ignores."""
    return [f"{program.title} ignores the magnitudes of a DoRA"] if has_dora(tensors) and not program.dora else []


def sgm(tensors: Tensors, family: Family, pipe: Any) -> dict[str, RawTensor]:
    """Kohya's layout with Stability's names for the denoiser's blocks."""
    prefix = family.lora_prefixes[family.denoiser_module] + "_"
    denoiser = getattr(pipe, family.denoiser_module)
    shape, modules = unet_shape(denoiser.config), _modules(denoiser)
    renamed = {}
    for name, raw in tensors.items():
        module, _, kind = name.partition(".")
        if module.startswith(prefix):
            module = prefix + sgm_module(_known(modules, module.removeprefix(prefix)), shape).replace(".", "_")
        renamed[f"{module}.{kind}"] = raw
    return renamed


def peft(tensors: Tensors, family: Family, pipe: Any) -> dict[str, RawTensor]:
    """PEFT's layout, `unet.<module>.lora_A.weight`; alpha / rank is multiplied into `lora_B`, as it has no alpha."""
    parts: dict[str, dict[str, RawTensor]] = defaultdict(dict)
    for name, raw in tensors.items():
        module, _, kind = name.partition(".")
        parts[module][kind] = raw
    made = {}
    clip = clip_modules(family)
    for name, part in parts.items():
        attribute = next(
            key for key, prefix in sorted(family.lora_prefixes.items(), reverse=True) if name.startswith(f"{prefix}_")
        )
        plain = name.removeprefix(family.lora_prefixes[attribute] + "_")
        module = f"{attribute}.{_known(_modules(getattr(pipe, attribute), clip=attribute in clip), plain)}"
        down, up = part["lora_down.weight"], part["lora_up.weight"]
        scaled = from_raw(up).double() * (float(from_raw(part["alpha"])) / down.shape[0])
        made[f"{module}.lora_A.weight"] = down
        made[f"{module}.lora_B.weight"] = to_raw(scaled.to(from_raw(up).dtype))
        if SCALE in part:
            made[f"{module}.lora_magnitude_vector.weight"] = _row(part[SCALE])
    return made


LAYOUTS = {"sgm": sgm, "peft": peft}


def _row(raw: RawTensor) -> RawTensor:
    """A column of magnitudes in PEFT's shape: (out,) for a matrix, (1, out, 1, 1) for a convolution."""
    return RawTensor(raw.dtype, raw.shape[:1] if len(raw.shape) == 2 else (1, raw.shape[0], *raw.shape[2:]), raw.stored)


def clip_modules(family: Family) -> set[str]:
    """The pipeline's names of the family's CLIP encoders; other text encoders have other layers and names."""
    return {encoder.module for encoder in family.encoders if encoder.key.startswith("clip")}


def _modules(model: Any, *, clip: bool = False) -> dict[str, str]:
    """Module names with underscores to module names, for CLIP's encoders with the level `text_model` added."""
    without = clip and not hasattr(model, "text_model")
    names = {f"text_model.{name}" if without and name else name for name, _ in model.named_modules()}
    return {name.replace(".", "_"): name for name in names}


def _known(modules: Mapping[str, str], name: str) -> str:
    if name not in modules:
        raise StageError(f"the LoRA has a layer {name!r} that the model does not have")
    return modules[name]
