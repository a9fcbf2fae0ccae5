"""A LoRA's tensors with the names that each program reads.

A run keeps its LoRA in kohya's layout with diffusers' module names (`lora_unet_down_blocks_…`,
`lora_te1_text_model_…`), which A1111, Forge, SD.Next, ComfyUI, InvokeAI and OneTrainer read. Six cases differ.
Kohya's scripts know SDXL's blocks by Stability's names only. diffusers reads kohya's layout, but drops `dora_scale`,
and the attention of text encoders when their `out_proj` has no LoRA: it gets PEFT's layout. So does A1111 for SD3,
whose loader wants two dots in every name. ComfyUI knows most transformers, and language models as text encoders, by
names of its own. Of Stable Cascade, ComfyUI and OneTrainer know the layers by the names of the model's own code. And
OneTrainer, InvokeAI and SD.Next read other names of many transformers: they get PEFT's layout, or ComfyUI's.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from ...converters.comfyui_layers import ComfyLayer, comfyui_layer
from ...converters.families import Family
from ...converters.lora_modules import modules_of
from ...converters.programs import Program
from ...converters.programs.loras import looks_for
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
        re.sub(r"^(lora_(?:prior_)?te\d?_)(?=encoder_layers_)", r"\1text_model_", name): _column(name, raw, tensors)
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


class Layer(NamedTuple):
    """The LoRA of one module of a part of the pipeline: alpha / rank is in `up`; `scale` are a DoRA's magnitudes."""

    attribute: str
    module: str
    down: RawTensor
    up: RawTensor
    scale: RawTensor | None


def _layers(tensors: Tensors, family: Family, pipe: Any) -> Iterator[Layer]:
    """All layers of a LoRA in kohya's layout, with the names that they have in the pipeline."""
    parts: dict[str, dict[str, RawTensor]] = defaultdict(dict)
    for name, raw in tensors.items():
        module, _, kind = name.partition(".")
        parts[module][kind] = raw
    clip, known = clip_modules(family), dict[str, dict[str, str]]()
    for name, part in parts.items():
        attribute = next(
            key for key, prefix in sorted(family.lora_prefixes.items(), reverse=True) if name.startswith(f"{prefix}_")
        )
        if attribute not in known:
            if getattr(pipe, attribute, None) is None:
                raise StageError(f"the LoRA has layers of {attribute}, which the pipeline was loaded without")
            known[attribute] = _modules(getattr(pipe, attribute), clip=attribute in clip)
        module = _known(known[attribute], name.removeprefix(family.lora_prefixes[attribute] + "_"))
        down, up = part["lora_down.weight"], part["lora_up.weight"]
        scaled = from_raw(up).double() * (float(from_raw(part["alpha"])) / down.shape[0])
        yield Layer(attribute, module, down, to_raw(scaled.to(from_raw(up).dtype)), part.get(SCALE))


def peft(tensors: Tensors, family: Family, pipe: Any) -> dict[str, RawTensor]:
    """PEFT's layout, `unet.<module>.lora_A.weight`; alpha / rank is multiplied into `lora_B`, as it has no alpha."""
    made = {}
    for layer in _layers(tensors, family, pipe):
        module = f"{layer.attribute}.{layer.module}"
        made[f"{module}.lora_A.weight"] = layer.down
        made[f"{module}.lora_B.weight"] = layer.up
        if layer.scale is not None:
            made[f"{module}.lora_magnitude_vector.weight"] = _row(layer.scale)
    return made


def comfyui(tensors: Tensors, family: Family, pipe: Any) -> dict[str, RawTensor]:
    """ComfyUI's names (see `comfyui_layers`) with PEFT's endings; alpha / rank is multiplied into `lora_B`.

    Layers that ComfyUI has as one become one LoRA, whose rank is the sum of theirs.
    """
    groups: dict[ComfyLayer, dict[str, Layer]] = defaultdict(dict)
    for layer in _layers(tensors, family, pipe):
        groups[comfyui_layer(family, layer.attribute, layer.module)][layer.module] = layer
    made = {}
    for (name, parts), layers in groups.items():
        layer = (
            layers[parts[0]] if len(parts) == 1 else _merge_layers(parts, layers, getattr(pipe, family.denoiser_module))
        )
        made[f"{name}.lora_A.weight"] = layer.down
        made[f"{name}.lora_B.weight"] = layer.up
        if layer.scale is not None:
            made[f"{name}.{SCALE}"] = layer.scale
    return made


def native(tensors: Tensors, family: Family, pipe: Any) -> dict[str, RawTensor]:
    """Kohya's layout with the denoiser's layers named as in the model's own code, which ComfyUI and OneTrainer know.

    Only layers whose names differ are in the table of `comfyui_layers`.
    """
    prefix = family.lora_prefixes[family.denoiser_module]
    modules = _modules(getattr(pipe, family.denoiser_module))
    renamed = {}
    for name, raw in tensors.items():
        module, _, kind = name.partition(".")
        if module.startswith(f"{prefix}_"):
            own = _known(modules, module.removeprefix(f"{prefix}_"))
            own = comfyui_layer(family, family.denoiser_module, own).name.partition(".")[2]
            module = f"{prefix}_{own.replace('.', '_')}"
        renamed[f"{module}.{kind}"] = raw
    return renamed


def _merge_layers(parts: Sequence[str], layers: Mapping[str, Layer], model: Any) -> Layer:
    """One LoRA for layers whose outputs follow one another: A one below the other, B as blocks of a diagonal.

    Rows of a part without a LoRA are zero; in a DoRA they have the norms of its weights, which changes nothing.
    """
    first = next(iter(layers.values()))
    blocks, scales = [], []
    for part in parts:
        layer, module = layers.get(part), model.get_submodule(part)
        blocks.append(from_raw(layer.up) if layer else torch.zeros(module.out_features, 0))
        if first.scale is not None:
            scale = from_raw(layer.scale) if layer and layer.scale else module.weight.detach().float().norm(dim=1)
            scales.append(scale.reshape(-1, 1).to(from_raw(first.scale).dtype))
    down = torch.cat([from_raw(layers[part].down) for part in parts if part in layers])
    up = torch.block_diag(*blocks).to(down.dtype)
    return Layer(first.attribute, "", to_raw(down), to_raw(up), to_raw(torch.cat(scales)) if scales else None)


def split_loaded(
    tensors: Tensors, program: Program, family: Family
) -> tuple[dict[str, RawTensor], dict[str, RawTensor]]:
    """Tensors of modules that the program's loader applies, and the others."""
    named = looks_for(program, family)
    if named is None or family.name in program.lora_refuses:
        return {}, dict(tensors)
    names = {key for module in modules_of(tensors) if named(module) for key in module.keys}
    return {name: tensors[name] for name in tensors if name in names}, {
        name: tensors[name] for name in tensors if name not in names
    }


LAYOUTS = {"sgm": sgm, "peft": peft, "comfyui": comfyui, "native": native}


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
