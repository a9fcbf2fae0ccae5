"""Tensors of which each process has a shard (torch's DTensor), whole again and taken apart."""

from __future__ import annotations

from torch import Tensor

from .trained import State


def whole(tensor: Tensor) -> Tensor:
    """A tensor with the shards of all processes, which must ask together; one that is not sharded as it is."""
    gathered = getattr(tensor, "full_tensor", None)
    return tensor if gathered is None else gathered()


def alike(values: Tensor, target: Tensor) -> Tensor:
    """Whole values as `target` has them: this process's shard of them where it is sharded. Nothing is sent."""
    if not hasattr(target, "placements"):
        return values
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(target, DTensor) or isinstance(values, DTensor) or values.shape != target.shape:
        return values
    values = values.to(target.device, target.dtype)
    return distribute_tensor(values, target.device_mesh, target.placements, src_data_rank=None)


def gathered(state: State, main: bool) -> State:
    """A state with whole tensors on the CPU, one after the other, in the main process; empty in the others."""
    tensors = {}
    for name, tensor in state.tensors.items():
        values = whole(tensor)
        if main:
            tensors[name] = values.cpu()
    return State(tensors, state.values) if main else State()
