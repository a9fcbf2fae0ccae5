"""Gradients of several processes added up."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from ..processes import Processes

if TYPE_CHECKING:
    from torch import Tensor

BUCKET = 2**24  # values that are added up at once: 64 MiB of float32


def add_up(leaves: Sequence[Tensor], processes: Processes) -> None:
    """Put into the `grad` of each leaf the sum of all processes' ones, added in float32.

    Where no process has one there is none. Every process must give the same leaves in the same order.
    """
    if processes.count > 1:
        for bucket in _buckets(leaves):
            _add_up(bucket, processes)


def _add_up(leaves: Sequence[Tensor], processes: Processes) -> None:
    import torch

    there = torch.tensor([leaf.grad is not None for leaf in leaves], dtype=torch.float32, device=processes.device)
    own = [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in leaves]
    flat = processes.sum(torch.cat([there, *(one.detach().float().flatten().to(there.device) for one in own)]))
    parts = flat[len(leaves) :].split([leaf.numel() for leaf in leaves])
    for leaf, any_there, part in zip(leaves, flat[: len(leaves)].tolist(), parts, strict=True):
        leaf.grad = part.view_as(leaf).to(leaf.device, leaf.dtype) if any_there else None


def _buckets(leaves: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """The leaves in groups of `BUCKET` values, or one that is larger."""
    bucket: list[Tensor] = []
    for leaf in leaves:
        if bucket and sum(one.numel() for one in bucket) + leaf.numel() > BUCKET:
            yield bucket
            bucket = []
        bucket.append(leaf)
    if bucket:
        yield bucket
