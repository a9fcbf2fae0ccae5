"""Learning-rate schedules: a factor for each step."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Shape = Callable[[float, Mapping[str, Any]], float]

# Each maps the share of steps done after the warm-up, 0 to 1, to a factor.
SCHEDULES: dict[str, Shape] = {
    "constant": lambda done, about: 1.0,
    "linear": lambda done, about: 1.0 - done,
    "cosine": lambda done, about: 0.5 * (1.0 + math.cos(math.pi * done)),
    "sqrt": lambda done, about: math.sqrt(1.0 - done),
    "restarts": lambda done, about: 0.5 * (1.0 + math.cos(math.pi * (done * about.get("cycles", 1) % 1.0))),
    "polynomial": lambda done, about: (1.0 - done) ** about.get("power", 1.0),
    "rex": lambda done, about: (1.0 - done) / (1.0 - 0.5 * done),  # Chen et al. 2021
}


def rate_factor(schedule: str | Mapping[str, Any], step: int, *, steps: int, warmup_steps: float) -> float:
    """Factor of the learning rate at `step`, counted from 0: a linear warm-up, then the schedule to the last step.

    `schedule` is a name, or a table with `kind`, `cycles`, `power` and `end`, the share that is left at the last step;
    `restarts`, `polynomial` and `piecewise` are diffusers' cosine_with_restarts, polynomial and piecewise_constant.
    `warmup_steps` below 1 are a share of the steps.
    """
    about: Mapping[str, Any] = {"kind": schedule} if isinstance(schedule, str) else schedule
    warmup = round(warmup_steps * steps) if warmup_steps < 1 else int(warmup_steps)
    if step < warmup:
        return (step + 1) / warmup
    if about["kind"] == "piecewise":
        return _piece(about.get("pieces", ()), step, steps)
    shape = SCHEDULES[about["kind"]]((step - warmup) / max(1, steps - warmup), about)
    end = float(about.get("end", 0.0))
    return shape if about["kind"] == "constant" else end + (1.0 - end) * shape


def _piece(pieces: Sequence[Sequence[float]], step: int, steps: int) -> float:
    """The factor of the last piece that has begun; 1 before the first."""
    begun = [(start if start >= 1 else start * steps, factor) for start, factor in pieces]
    return next((float(factor) for start, factor in sorted(begun, reverse=True) if start <= step), 1.0)
