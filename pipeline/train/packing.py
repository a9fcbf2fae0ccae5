"""Nested values with tensors, such as an optimizer's state, split into tensors and JSON, and merged again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..errors import StageError
from .fsdp import sharded_like
from .trainable import State


def copied(tensor: Tensor) -> Tensor:
    """A copy on the CPU, as the device may lack memory for one; a copy of shards stays on their device."""
    return tensor.detach().clone() if hasattr(tensor, "placements") else tensor.detach().to("cpu", copy=True)


def pack(tree: Any, *, copy: Callable[[Tensor], Tensor] = copied) -> State:
    """Copies of all tensors of a tree of dicts, lists and tuples by their path, and the rest as JSON values.

    Raises StageError for a value that is not JSON.
    """
    tensors: dict[str, Tensor] = {}
    values = {"tree": _split(tree, "", tensors)}
    return State({path: copy(tensor) for path, tensor in tensors.items()}, values)


def _split(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        tensors[path] = value
        return {"tensor": path}
    if isinstance(value, dict):
        return {"pairs": [[key, _split(one, f"{path}.{key}".lstrip("."), tensors)] for key, one in value.items()]}
    if isinstance(value, (list, tuple)):
        kind = "tuple" if isinstance(value, tuple) else "list"
        return {kind: [_split(one, f"{path}.{at}".lstrip("."), tensors) for at, one in enumerate(value)]}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise StageError(f"the optimizer has a {type(value).__name__} at {path}, which cannot be stored in a checkpoint")


def unpack(state: State) -> Any:
    """The tree that `pack` split, with copies of its tensors."""
    return _merge(state.values["tree"], state.tensors)


def _merge(value: Any, tensors: dict[str, Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        return tensors[value["tensor"]].clone()
    if "pairs" in value:
        return {key: _merge(one, tensors) for key, one in value["pairs"]}
    if "tuple" in value:
        return tuple(_merge(one, tensors) for one in value["tuple"])
    return [_merge(one, tensors) for one in value["list"]]


@torch.no_grad()
def copy_into(target: Tensor, source: Tensor, what: str) -> None:
    """Fill a tensor with the values of a checkpoint. Raises StageError when the shapes differ."""
    if target.shape != source.shape:
        raise StageError(f"{what} is {tuple(target.shape)}, the checkpoint has {tuple(source.shape)}")
    target.copy_(sharded_like(source, target))
