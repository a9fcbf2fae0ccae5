"""Optimizers that need no schedule: what is used is an average of their way (Defazio et al. 2024).

Such an optimizer has three values of each weight: `z`, which takes the steps, their average `x`, and between the two
`y`, where gradients are asked for and which stands in the weight while it trains.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Rule = Callable[[Tensor], Tensor]


def averages_itself(kind: str) -> bool:
    """Whether this kind of optimizer keeps an average of its own, beside which no other makes sense."""
    return kind.endswith("schedule-free")


class Turns:
    """Lets the average stand in an optimizer's weights for a while, and then what is trained, to the last bit.

    The libraries' own way back is a sum that rounds: looking at the average would change what is learnt.
    """

    def __init__(self, optimizer: Any) -> None:
        self.optimizer = optimizer
        self._trained: list[Tensor] = []

    @torch.no_grad()
    def show(self, average: bool) -> None:
        """Put the average there (True), or what is trained (False), which must have been there before."""
        weights = [weight for group in self.optimizer.param_groups for weight in group["params"]]
        if average:
            self._trained = [weight.detach().clone() for weight in weights]
            self.optimizer.eval()
            return
        self.optimizer.train()
        for weight, trained in zip(weights, self._trained, strict=True):
            weight.copy_(trained)
        self._trained = []

    def settle(self) -> None:
        """The average stays: there is no way back."""
        self._trained = []


@torch.no_grad()
def hold(optimizer: Any, rule: Rule) -> None:
    """Have the values that take the steps obey a rule, as projected descent does.

    Ruling `y` instead would let them run away, and with them the average, which is what is exported. The average of
    what obeys a rule is ruled once more where it is shown: a mean of vectors is shorter.
    """
    optimizer.eval()
    for state in optimizer.state.values():
        if "z" in state:
            state["z"].copy_(rule(state["z"]))
    optimizer.train()
