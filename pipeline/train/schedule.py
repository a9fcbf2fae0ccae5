"""Learning-rate schedules: a factor for each step."""

from __future__ import annotations

import math
from collections.abc import Callable

# Each maps the share of steps done after the warm-up, 0 to 1, to a factor.
SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda done: 1.0,
    "linear": lambda done: 1.0 - done,
    "cosine": lambda done: 0.5 * (1.0 + math.cos(math.pi * done)),
    "sqrt": lambda done: math.sqrt(1.0 - done),
}


def rate_factor(kind: str, step: int, *, steps: int, warmup_steps: int) -> float:
    """Factor of the learning rate at `step`, counted from 0: a linear warm-up, then the schedule to the last step."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    return SCHEDULES[kind]((step - warmup_steps) / max(1, steps - warmup_steps))
