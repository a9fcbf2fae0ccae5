"""Intervals and limits in steps, epochs, time or percent of a stage: `stop_after`, `save`, `watch`, `checkpoint`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ..text import nearest
from .model import StopAfter

UNITS = ("steps", "epochs", "seconds", "minutes", "hours", "percent")
OWN = "own steps"  # counts only steps whose batch contains the embedding
_FORM = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*(own steps?|\S+)\s*")
_EXAMPLES = 'never, or a number and its unit: "500 steps", "10 epochs", "30 minutes", "60 %"'


def parse_stop(
    text: str, zero: str = "0 never trains the embedding; use train = false instead", *, own: bool = False
) -> StopAfter:
    """Parse an interval such as "500 steps"; the message of a ValueError names the nearest known unit.

    "own steps" is allowed only for embeddings (`own`).
    """
    if text == "never":
        return StopAfter(0.0, "never")
    match = _FORM.fullmatch(text)
    if match is None:
        hint = " did you mean 'never'?" if nearest(text, ["never"]) else ""
        raise ValueError(f"{text!r} is not {_EXAMPLES}.{hint}".rstrip("."))
    value, unit = float(match[1]), _unit(match[2])
    if unit == OWN and not own:
        raise ValueError("'own steps' is only for embeddings; use steps")
    if unit is None:
        guess = nearest(match[2], [*UNITS, "%"])
        hint = f"did you mean '{match[1]} {guess}'?" if guess else f"known: {', '.join(UNITS[:-1])}, %"
        raise ValueError(f"{match[2]!r} is not a known unit; {hint}")
    if value == 0:
        raise ValueError(zero)
    if unit == "percent" and value > 100:
        raise ValueError(f"{match[1]} % is more than the stage; at most 100 %")
    return StopAfter(value, unit)


def _unit(text: str) -> str | None:
    text = "percent" if text == "%" else text
    return next((unit for unit in (*UNITS, OWN) if text in (unit, unit.rstrip("s"))), None)


def stop_text(stop: StopAfter) -> str:
    """The interval as written in a recipe."""
    if stop.unit == "never":
        return "never"
    return f"{stop.value:.9g} {'%' if stop.unit == 'percent' else stop.unit}"


SECONDS = {"seconds": 1.0, "minutes": 60.0, "hours": 3600.0}


@dataclass(frozen=True)
class Clock:
    """Progress of a train stage: `step` counts from 0, `seconds` since its first step."""

    step: int
    steps: int
    steps_per_epoch: float
    seconds: float


def stopped(rule: StopAfter, clock: Clock) -> bool:
    """Whether an embedding has reached its stop_after."""
    if rule.unit == "never":
        return False
    if rule.unit in SECONDS:
        return clock.seconds >= rule.value * SECONDS[rule.unit]
    if rule.unit == "percent":
        return clock.step >= clock.steps * rule.value / 100
    return clock.step >= rule.value * (clock.steps_per_epoch if rule.unit == "epochs" else 1)


@dataclass(frozen=True)
class Every:
    """A repeated action: every so many steps, epochs, percent of the stage, seconds, minutes or hours; or never.

    With a unit of time, the action is due at the first step after the time has passed.
    """

    every: StopAfter
    steps: int
    steps_per_epoch: float

    def due(self, step: int, before: float, seconds: float) -> bool:
        """Whether the action is due after this step, counted from 1.

        The previous step ended `before` seconds after the start of the stage, this one `seconds` after it. In a resumed
        run the time of earlier processes counts.
        """
        if self.every.unit == "never":
            return False
        if self.every.unit in SECONDS:
            length = self.every.value * SECONDS[self.every.unit]
            return seconds // length > before // length
        return self._count(step) > self._count(step - 1)

    def _count(self, step: int) -> int:
        length = {"steps": 1.0, "epochs": self.steps_per_epoch, "percent": self.steps / 100}[self.every.unit]
        return int(step / (self.every.value * length) + 1e-9)


class Stops:
    """Finds the embeddings that reach their stop_after, each once. The cost of a step does not depend on the number of
    embeddings.
    """

    def __init__(self, rules: Mapping[str, StopAfter], recorded: Mapping[str, int] | None = None) -> None:
        """`recorded` has the step at which an embedding stopped in an earlier process of this run: in a resumed run it
        stops at the same step, whatever the clock says."""
        self.counts = {embedding: 0 for embedding, rule in rules.items() if rule.unit == OWN}
        self._rules = rules
        self._waiting: dict[str, list[tuple[StopAfter, str]]] = {}
        for embedding, rule in rules.items():
            if embedding in (recorded or {}) and rule.unit != OWN:
                rule = StopAfter(float((recorded or {})[embedding]), "steps")
            if rule.unit not in ("never", OWN):
                self._waiting.setdefault(rule.unit, []).append((rule, embedding))
        for waiting in self._waiting.values():
            waiting.sort(key=lambda pair: pair[0].value, reverse=True)

    def due(self, clock: Clock) -> list[str]:
        """Embeddings that reached stop_after by steps, epochs or time, in the batch or not."""
        found = []
        for waiting in self._waiting.values():
            while waiting and stopped(waiting[-1][0], clock):
                found.append(waiting.pop()[1])
        return found

    def counted(self, embeddings: Iterable[str]) -> list[str]:
        """Count a step of the embeddings in a batch; returns those that reached their number of own steps."""
        found = []
        for embedding in embeddings:
            if embedding in self.counts:
                self.counts[embedding] += 1
                if self.counts[embedding] >= self._rules[embedding].value:
                    found.append(embedding)
        return found

    def short(self) -> list[tuple[str, int, float]]:
        """Embeddings with fewer own steps than their stop_after: name, steps so far, steps to do."""
        return [
            (embedding, count, self._rules[embedding].value)
            for embedding, count in self.counts.items()
            if count < self._rules[embedding].value
        ]

    def state(self) -> dict[str, Any]:
        return {embedding: count for embedding, count in self.counts.items() if count}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.counts.update({embedding: int(count) for embedding, count in state.items() if embedding in self.counts})
