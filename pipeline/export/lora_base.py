"""A LoRA file to train on from, or to train embeddings under: its matrices for the layers of a loaded model.

A file's modules are found by every name that programs give a layer: diffusers' and PEFT's, kohya's with diffusers' or
Stability's blocks, OneTrainer's, ComfyUI's and that of the model's own code where `comfyui_layers` has it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...converters import safetensors_file
from ...converters.comfyui_layers import comfyui_layer
from ...converters.dtypes import convert
from ...converters.errors import ConvertError
from ...converters.lora_plain import PlainModule, plain_modules
from ...converters.tensor import RawTensor
from ..errors import StageError
from ..models.load import DENOISER, Model, part_module, part_modules, pipe_name
from ..recipe.options import LoraOptions
from ..tensors import from_raw
from ..text import count_of
from ..train.lora import LoraWeights, all_layers
from .layouts import sgm_module, unet_shape

Layers = tuple[str, tuple[str, ...]]  # a part of the model, and those of its layers that a module of the file has


def read_bases(model: Model, tables: Sequence[LoraOptions]) -> dict[str, dict[str, dict[str, LoraWeights]]]:
    """The base files of these tables: by path, part of the model and name of the layer there.

    Raises StageError when a file cannot be read, is of another kind or model, or has other parts than its table.
    """
    bases = {}
    for table in tables:
        if table.base is not None and table.base not in bases:
            bases[table.base] = _read(model, Path(table.base))
        if table.base is not None:
            _require_parts(model, Path(table.base), bases[table.base], table.parts)
    return bases


def _read(model: Model, path: Path) -> dict[str, dict[str, LoraWeights]]:
    try:
        tensors, metadata = safetensors_file.read(path)
        modules = plain_modules(tensors, metadata)
    except ConvertError as error:
        raise StageError(f"lora.base = {str(path)!r} {str(error).removeprefix(f'{path}: ')}") from error
    known = spellings(model)
    found = {
        name: known.get(re.sub(r"\.processor\.(to_[qkv])$|\.processor\.(to_out)$", _plain, name)) for name in modules
    }
    if unknown := [name for name, layers in found.items() if layers is None]:
        raise StageError(
            f"lora.base = {str(path)!r}: {len(unknown)} of its {count_of(len(modules), 'module')} ({unknown[0]!r}, …) "
            f"cannot be mapped to layers of this {model.family.title} model; use a LoRA for it in another layout"
        )
    weights: dict[str, dict[str, LoraWeights]] = {}
    for name, layers in found.items():
        assert layers is not None
        own = weights.setdefault(layers[0], {})
        for layer, one in _weights(path, name, modules[name], tensors, part_module(model, layers[0]), layers[1]):
            if layer in own:
                raise StageError(f"lora.base = {str(path)!r} has two modules for {layer} of {layers[0]}")
            own[layer] = one
    return weights


def _require_parts(model: Model, path: Path, weights: Mapping[str, Any], parts: Sequence[str]) -> None:
    """StageError unless the file has modules of exactly these parts."""
    if weights.keys() != set(parts):
        there = [part for part in part_modules(model) if part in weights]
        key = ", ".join(f'"{part}"' for part in there)
        raise StageError(f"lora.base = {str(path)!r} has modules of {', '.join(there)}; set parts = [{key}]")


def _plain(found: re.Match[str]) -> str:
    """A layer of attention as it is called without diffusers' old attention processors."""
    return f".{found[1]}" if found[1] else ".to_out.0"


def spellings(model: Model) -> dict[str, Layers]:
    """Every name that a file may give a layer of the model, and which layers it is."""
    known: dict[str, Layers] = {}
    for part, module in part_modules(model).items():
        for name in all_layers(module):
            for spelled, layers in _spellings(model, part, name):
                known.setdefault(spelled, (part, layers))
    return known


def _spellings(model: Model, part: str, name: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    attribute, family = pipe_name(model, part), model.family
    kohya = family.lora_prefixes[attribute]
    if part != DENOISER:
        short = name.removeprefix("text_model.")
        names = (short, f"text_model.{short}") if part.startswith("clip") else (name,)
        prefixes = (kohya, *(("lora_te", "lora_te1") if len(family.encoders) == 1 else ()))
        for one in names:
            yield f"{attribute}.{one}", (name,)
            yield comfyui_layer(family, attribute, one).name, (name,)
            yield from ((f"{prefix}_{one.replace('.', '_')}", (name,)) for prefix in prefixes)
        return
    native = comfyui_layer(family, attribute, name)
    forms = {name: (name,), native.name.partition(".")[2]: native.parts}
    if attribute == "unet":
        with suppress(StageError):
            forms[sgm_module(name, unet_shape(model.denoiser.config))] = (name,)
    starts = (
        "",
        f"{attribute}.",
        "transformer.",
        "diffusion_model.",
        "base_model.model.",
        f"{attribute}.base_model.model.",
    )
    for form, layers in forms.items():
        yield from ((start + form, layers) for start in starts)
        flat = form.replace(".", "_")
        yield from ((f"{start}_{flat}", layers) for start in (kohya, "lora_unet", "lora_transformer", "lycoris"))


def _weights(
    path: Path,
    name: str,
    about: PlainModule,
    tensors: Mapping[str, RawTensor],
    module: nn.Module,
    layers: Sequence[str],
) -> Iterator[tuple[str, LoraWeights]]:
    """The matrices of a module of the file for its layers; of several each has `down` and its own rows of `up`."""
    down, up = (_float32(path, key, tensors[key]) for key in (about.down, about.up))
    alpha = (
        about.alpha if not isinstance(about.alpha, str) else float(_float32(path, about.alpha, tensors[about.alpha]))
    )
    shapes = [_shape(module.get_submodule(layer)) for layer in layers]
    fits = all((shape[1:], len(shape)) == (down.shape[1:], down.ndim) for shape in shapes)
    if not fits or sum(shape[0] for shape in shapes) != up.shape[0]:
        theirs = f"({up.shape[0]}, {', '.join(map(str, down.shape[1:]))})"
        raise StageError(
            f"lora.base = {str(path)!r} is for another model: {name} is of a layer of shape {theirs}, and that of this "
            f"model is {tuple(shapes[0])}"
        )
    for layer, rows in zip(layers, up.split([shape[0] for shape in shapes]), strict=True):
        yield layer, LoraWeights(down, rows, float(len(down)) if alpha is None else alpha)


def _weight(layer: Any) -> Tensor:
    weight: Tensor = getattr(layer, "base_layer", layer).weight
    return weight


def _shape(layer: Any) -> torch.Size:
    """The shape of a layer's weight; of a packed one, as it was."""
    own = getattr(layer, "base_layer", layer)
    return torch.Size((own.out_features, own.in_features)) if isinstance(own, nn.Linear) else own.weight.shape


def _float32(path: Path, key: str, raw: RawTensor) -> Tensor:
    try:
        tensor = from_raw(convert(raw, "F32", key)[0])
    except ConvertError as error:
        raise StageError(f"lora.base = {str(path)!r}: {error}") from error
    if not tensor.isfinite().all():
        raise StageError(f"lora.base = {str(path)!r}: {key} has values that are not finite numbers; use another file")
    return tensor


def merge_fixed_loras(model: Model, tables: Sequence[LoraOptions]) -> None:
    """Add fixed LoRAs to the weights of the model, for training and drawing, as programs apply them.

    The sum is computed in float32 and rounded to the weights' dtype. Raises StageError as `read_bases` does.
    """
    bases = read_bases(model, tables)
    for table in tables:
        assert table.base is not None
        for part, layers in bases[table.base].items():
            for name, one in layers.items():
                weight = _weight(part_module(model, part).get_submodule(name))
                made = merged(weight.data, one, table.strength)
                weight.data = made.pin_memory() if weight.data.is_pinned() else made  # of an offloaded block


def under(table: LoraOptions) -> str:
    """What users of the embeddings need to know of a fixed LoRA."""
    file = Path(table.base or "").name
    return f"trained under the LoRA {file}, strength {table.strength:g}; load it beside what is exported"


@torch.no_grad()
def merged(weight: Tensor, lora: LoraWeights, strength: float = 1.0) -> Tensor:
    """The weight of a layer with a LoRA added, in its dtype: W + strength * alpha / rank * up @ down."""
    change = lora.up.flatten(1) @ lora.down.flatten(1) * (strength * lora.alpha / len(lora.down))
    return (weight.float() + change.reshape(weight.shape).to(weight.device)).to(weight.dtype)
