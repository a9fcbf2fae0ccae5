"""How far a train stage is, and whether a word has had all its training."""

from __future__ import annotations

from dataclasses import dataclass

from ..recipe.model import StopAfter

SECONDS = {"seconds": 1.0, "minutes": 60.0, "hours": 3600.0}


@dataclass(frozen=True)
class Clock:
    """How far a train stage is: `step` counts from 0, `seconds` since its first step."""

    step: int
    steps: int
    steps_per_epoch: float
    seconds: float


def stopped(rule: StopAfter, clock: Clock) -> bool:
    """Whether a word has had all the training its recipe gives it."""
    if rule.unit == "never":
        return False
    if rule.unit in SECONDS:
        return clock.seconds >= rule.value * SECONDS[rule.unit]
    if rule.unit == "percent":
        return clock.step >= clock.steps * rule.value / 100
    return clock.step >= rule.value * (clock.steps_per_epoch if rule.unit == "epochs" else 1)
