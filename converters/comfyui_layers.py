"""What ComfyUI calls the layers of a LoRA, where its names are not kohya's or diffusers'."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from .families import Family


class ComfyLayer(NamedTuple):
    """ComfyUI's name of a layer, and the layers of diffusers that it joins: their outputs follow one another."""

    name: str
    parts: tuple[str, ...]


def comfyui_layer(family: Family, attribute: str, module: str) -> ComfyLayer:
    """The layer of ComfyUI's model that has a module of the pipeline's part `attribute` in it.

    ComfyUI knows some denoisers by diffusers' names after `transformer.`, others by their own after `diffusion_model.`;
    a layer that is in no table gets the name after `transformer.`, which ComfyUI does not apply in the second case.
    """
    if attribute != family.denoiser_module:
        key = next(encoder.key for encoder in family.encoders if encoder.module == attribute)
        return ComfyLayer(f"text_encoders.{_data()['encoders'][key]}.transformer.{_encoder_module(module)}", (module,))
    for pattern, native, parts in _table(family.name):
        if match := pattern.fullmatch(module):
            layers = tuple(_numbered(part, match.groups()) for part in parts)
            return ComfyLayer(f"diffusion_model.{_numbered(native, match.groups())}", layers)
    return ComfyLayer(f"transformer.{module}", (module,))


def has_own_names(family: Family) -> bool:
    """Whether the names of the denoiser's layers in the model's own code are known here."""
    return family.name in _data()["layers"]


def _numbered(name: str, numbers: Sequence[str]) -> str:
    """The name with these numbers of blocks in place of its `*`."""
    for number in numbers:
        name = name.replace("*", number, 1)
    return name


def _encoder_module(module: str) -> str:
    """Language models are `model.layers` in ComfyUI, whatever else is around them; others have transformers' names."""
    return re.sub(r"^(model\.)?(language_model\.)?(?=layers\.)", "model.", module)


@cache
def _table(family: str) -> list[tuple[re.Pattern[str], str, list[str]]]:
    """A pattern for each of diffusers' names; each `*` stands for the number of a block."""
    layers: dict[str, list[str]] = _data()["layers"].get(family, {})
    return [
        (re.compile(re.escape(part).replace(r"\*", r"(\d+)")), native, parts)
        for native, parts in layers.items()
        for part in parts
    ]


@cache
def _data() -> dict[str, Any]:
    data: dict[str, Any] = json.loads(Path(__file__).with_suffix(".json").read_text("utf-8"))
    return data
