"""Exponential moving averages of what is trained, and when they stand in its place."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from .fsdp import alike


class Average:
    """The average of the rows of a tensor over the steps that moved them; weights are averaged as one row.

    In the first steps the decay is (1 + n) / (10 + n), n counting a row's steps, so that the start is soon forgotten:
    the rule of TensorFlow and diffusers.
    """

    def __init__(self, values: Tensor, decay: float, *, rows: bool = False) -> None:
        self.values, self.decay = values, decay
        self.shadow = values.detach().clone()
        self.counts = torch.zeros(len(values) if rows else 1, device=values.device)

    @torch.no_grad()
    def update(self, index: Tensor | None = None) -> None:
        """Take in the values after a step, all of them or the rows `index`."""
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
        """Exchange average and values; twice is as before."""
        kept = self.values.detach().clone()
        self.values.copy_(self.shadow)
        self.shadow.copy_(kept)

    @torch.no_grad()
    def settle(self, rows: Tensor) -> None:
        """Put the average of these rows (their numbers) into the values: they stand still from now on."""
        self.values[rows] = self.shadow[rows]

    def state(self) -> dict[str, Tensor]:
        return {"shadow": self.shadow, "counts": self.counts}

    def joined(self, states: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """The state of all rows from those of averages that have them in turn."""
        return {name: torch.cat([state[name] for state in states]) for name in self.state()}

    @torch.no_grad()
    def restore(self, state: Mapping[str, Tensor]) -> None:
        self.shadow.copy_(alike(state["shadow"], self.shadow))
        self.counts.copy_(state["counts"])


class Shown:
    """Whether the values that are to be used stand where the model looks, or those that are trained."""

    def __init__(self, exchange: Callable[[bool], None]) -> None:
        """`exchange` puts the values to be used there (True), or those that are trained (False)."""
        self.exchange, self.now = exchange, False

    def show(self, use: bool) -> None:
        """Doing so twice does no harm."""
        if self.now != use:
            self.now = use
            self.exchange(use)

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Within it the values to be used are shown; afterwards what was shown before."""
        before = self.now
        self.show(True)
        try:
            yield
        finally:
            self.show(before)
