"""EMA weights, and swapping them with the trained weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from .fsdp import sharded_like


class Average:
    """The EMA of the rows of a tensor over the steps that trained them; a weight is one row.

    In the first steps the decay is (1 + n) / (10 + n), with n the steps of the row, so that the initial value soon has
    no influence: the rule of TensorFlow and diffusers.
    """

    def __init__(self, values: Tensor, decay: float, *, rows: bool = False) -> None:
        self.values, self.decay = values, decay
        self.shadow = values.detach().clone()
        self.counts = torch.zeros(len(values) if rows else 1, device=values.device)

    @torch.no_grad()
    def update(self, index: Tensor | None = None) -> None:
        """Update with the values after a step, all of them or the rows `index`."""
        if index is None:
            self.counts += 1
            self.shadow.lerp_(self.values, 1 - float(self._decay(self.counts)))
            return
        self.counts[index] += 1
        keep = self._decay(self.counts[index]).unsqueeze(1)
        self.shadow[index] = self.shadow[index] * keep + self.values[index] * (1 - keep)

    def _decay(self, counts: Tensor) -> Tensor:
        return ((1 + counts) / (10 + counts)).clamp(max=self.decay)

    @torch.no_grad()
    def swap(self) -> None:
        """Swap EMA weights and values; swapping twice changes nothing."""
        values = self.values.detach().clone()
        self.values.copy_(self.shadow)
        self.shadow.copy_(values)

    @torch.no_grad()
    def settle(self, rows: Tensor) -> None:
        """Copy the EMA weights of these rows (their indices) into the values; the rows are frozen from now on."""
        self.values[rows] = self.shadow[rows]

    def state(self) -> dict[str, Tensor]:
        return {"shadow": self.shadow, "counts": self.counts}

    def merge_shards(self, states: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """The state of all rows, from the states of the shards in order."""
        return {name: torch.cat([state[name] for state in states]) for name in self.state()}

    @torch.no_grad()
    def restore(self, state: Mapping[str, Tensor]) -> None:
        self.shadow.copy_(sharded_like(state["shadow"], self.shadow))
        self.counts.copy_(state["counts"])


class EmaSwitch:
    """Whether the model has the weights that are exported (EMA weights, if any) or those that are trained."""

    def __init__(self, exchange: Callable[[bool], None]) -> None:
        """`exchange` puts the exported weights (True) or the trained weights (False) into the model."""
        self.exchange, self.now = exchange, False

    def set(self, use: bool) -> None:
        """Does nothing if they are there already."""
        if self.now != use:
            self.now = use
            self.exchange(use)

    @contextmanager
    def on(self) -> Iterator[None]:
        """Within it the model has the exported weights; afterwards what it had before."""
        before = self.now
        self.set(True)
        try:
            yield
        finally:
            self.set(before)
