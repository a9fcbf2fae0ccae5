"""AdamW for the rows of a table of which each step touches only a few."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from .packing import copy_into


class LazyAdamW:
    """AdamW (Loshchilov & Hutter 2019) with a step count and moments for each row.

    A row that is not in the batch does not move: no momentum, no decay, no step counted. For a table of which every
    row is touched in every step it is exactly AdamW. State: 8 bytes a value and 4 a row beside the values' own 4.
    """

    def __init__(
        self, values: Tensor, *, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8,
        weight_decay: float = 0.0, own: slice | None = None,
    ) -> None:  # fmt: skip
        """`own` are the rows that it will be asked to move, and has state for; all of them unless said."""
        self.values, self.own = values, own or slice(0, len(values))
        self.betas, self.eps, self.weight_decay = betas, eps, weight_decay
        self.moment = torch.zeros_like(values[self.own])
        self.square = torch.zeros_like(values[self.own])
        self.steps = torch.zeros(len(self.moment), dtype=torch.float32, device=values.device)

    def state(self) -> dict[str, Tensor]:
        """Moments and step counts by name: the tensors themselves."""
        return {"moment": self.moment, "square": self.square, "steps": self.steps}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on with the moments and step counts of `state`. Raises StageError when their shapes differ."""
        for name, values in self.state().items():
            copy_into(values, state[name], f"the optimizer's {name}")

    @torch.no_grad()
    def step(self, index: Tensor, rows: Tensor, gradient: Tensor, rate: Tensor | float) -> Tensor:
        """Move the rows `index` (rows,) from `rows` along `gradient`, both (rows, width) float32; return them moved.

        `rate` is one learning rate or one a row. The table itself is written too.
        """
        first, second = self.betas
        at = index - self.own.start
        steps = self.steps[at] + 1
        moment = self.moment[at].lerp_(gradient, 1 - first)
        square = self.square[at].mul_(second).addcmul_(gradient, gradient, value=1 - second)
        left_first = -torch.expm1(steps * math.log(first)) if first else torch.ones_like(steps)
        left_second = -torch.expm1(steps * math.log(second))  # 1 - second ** steps, exact to float32
        size = square.sqrt().div_(left_second.sqrt_().unsqueeze(1)).add_(self.eps)
        moved = rows.detach().clone()
        if self.weight_decay:
            moved.sub_(moved * (torch.as_tensor(rate, device=moved.device).reshape(-1, 1) * self.weight_decay))
        moved.sub_(moment.div(size).mul_((rate / left_first).unsqueeze(1)))
        self.steps[at], self.moment[at], self.square[at] = steps, moment, square
        self.values[index] = moved
        return moved
