"""A random LoRA on every part of a tiny model, as a run keeps it."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, NamedTuple

import torch
from peft.tuners.lora import LoraLayer
from projects import BUILD, family_name
from torch import Tensor

from pivotune.converters.families import Family, families
from pivotune.converters.tensor import RawTensor
from pivotune.pipeline.export.lora_layouts import settled
from pivotune.pipeline.recipe.options import LoraOptions
from pivotune.pipeline.recipe.typed import options_of
from pivotune.pipeline.tensors import to_raw
from pivotune.pipeline.train.lora import ADAPTER, add_lora, lora_tensors, remove_lora


class RandomLora(NamedTuple):
    """`deltas` has what the LoRA adds to the weight of each module, by part and name, as peft multiplies it out."""

    pipe: Any
    family: Family
    tensors: dict[str, RawTensor]
    deltas: dict[str, Tensor]


def random_lora(
    model: str, *, dora: bool = False, targets: Any = "attention+feed-forward", parts: Collection[str] = ()
) -> RandomLora:
    """A LoRA of rank 3 with alpha 2 on all parts (or on `parts`) of a model of BUILD, whose weights do not have it."""
    pipe, family = BUILD[model](), families()[family_name(model)]
    options = options_of(LoraOptions, rank=3, alpha=2.0, dora=dora, targets=targets)
    tensors, deltas = dict[str, RawTensor](), dict[str, Tensor]()
    for attribute, prefix in family.lora_prefixes.items():
        part = getattr(pipe, attribute)
        if part is None or (parts and attribute not in parts):
            continue
        generator = torch.Generator().manual_seed(7)
        for parameter in add_lora(attribute, part, options, 0).values():
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator).abs() + 0.1)
        tensors |= {name: to_raw(one) for name, one in lora_tensors(part, prefix).items()}
        deltas |= {f"{attribute}.{name}": delta for name, delta in deltas_of(part, ADAPTER).items()}
        remove_lora(part)
    return RandomLora(pipe, family, settled(tensors), deltas)


def deltas_of(part: torch.nn.Module, adapter: str) -> dict[str, Tensor]:
    """What a LoRA adds to the weights of a model, by name of the module."""
    return {
        name: layer.get_delta_weight(adapter).detach().clone()
        for name, layer in part.named_modules()
        if isinstance(layer, LoraLayer) and adapter in layer.lora_A
    }
