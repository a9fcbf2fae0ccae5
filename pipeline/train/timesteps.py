"""Which time steps a batch is trained at."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import StageError


@dataclass(frozen=True)
class TimeStepOptions:
    """How time steps are drawn; `schemas/tables/timesteps.json` says what each means. None is the model's own."""

    low: int = 0
    high: int | None = None
    sampling: str | None = None
    mean: float = 0.0
    deviation: float = 1.0
    mode_scale: float = 1.29
    shift: float | None = None

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> TimeStepOptions:
        return cls(**options)

    def refuse(self, steps: int) -> None:
        """StageError where no time step is left of the model's `steps`, or one is asked for that it has not."""
        if not self.low < (self.high or steps) <= steps:
            raise StageError(
                f"timesteps: low = {self.low} and high = {self.high or steps} leave nothing of the model's {steps} "
                "time steps; low must be below high, and high at most that many"
            )


def draw_shares(kind: str, count: int, draw: torch.Generator, options: TimeStepOptions) -> Tensor:
    """(count,) numbers in 0..1: uniform, logit-normal or mode (Esser et al. 2024, section 3.1), on the CPU.

    The same numbers as diffusers' `compute_density_for_timestep_sampling` gives from the same generator.
    """
    if kind == "logit-normal":
        return torch.sigmoid(torch.randn(count, generator=draw) * options.deviation + options.mean)
    share = torch.rand(count, generator=draw)
    if kind == "mode":
        return 1 - share - options.mode_scale * (torch.cos(math.pi * share / 2) ** 2 - 1 + share)
    return share


def shifted(share: Tensor, shift: float) -> Tensor:
    """Shares of the way to pure noise, 0..1, moved towards more noise by a shift above 1 (Esser et al. 2024)."""
    return shift * share / (1 + (shift - 1) * share)


def draw_steps(count: int, steps: int, draw: torch.Generator, options: TimeStepOptions) -> Tensor:
    """(count,) whole time steps of a diffusion model's `steps`: from `low` to before `high`, then shifted."""
    low, high = options.low, options.high or steps
    kind, shift = options.sampling or "uniform", options.shift or 1.0
    if kind == "uniform" and shift == 1.0:
        return torch.randint(low, high, (count,), generator=draw)
    share = draw_shares(kind, count, draw, options).double().clamp(max=1 - 1e-9)
    return (shifted((low + share * (high - low)) / steps, shift) * steps).long().clamp(0, steps - 1)
