"""The factor that keeps float16 gradients from vanishing, and shrinks when they overflow."""

from __future__ import annotations

from dataclasses import dataclass

import torch

FIRST, LARGEST, SMALLEST = 128.0, 65536.0, 2.0**-10
GROW_AFTER = 500  # steps in a row without an overflow


@dataclass
class LossScale:
    """What the loss is multiplied by (Micikevicius et al. 2018): 1 but for float16 models.

    A step whose gradient overflows is repeated with half the scale; after `GROW_AFTER` good steps it doubles.
    """

    value: float = 1.0
    dynamic: bool = False
    good: int = 0
    overflows: int = 0

    def halve(self) -> bool:
        """Note an overflow. False when a smaller scale cannot help: the gradient is not finite for another reason."""
        if not self.dynamic or self.value <= SMALLEST:
            return False
        self.value, self.good = self.value / 2, 0
        self.overflows += 1
        return True

    def go_back(self, before: LossScale) -> None:
        """Be as before a step that no scale could save: what was wrong with it had nothing to do with the scale."""
        self.value, self.good, self.overflows = before.value, before.good, before.overflows

    def keep(self) -> None:
        """Note a good step."""
        self.good += 1
        if self.dynamic and self.good >= GROW_AFTER and self.value < LARGEST:
            self.value, self.good = self.value * 2, 0


def loss_scale(dtype: torch.dtype) -> LossScale:
    """The scale that a model of this data type starts with."""
    return LossScale(FIRST, True) if dtype == torch.float16 else LossScale()
