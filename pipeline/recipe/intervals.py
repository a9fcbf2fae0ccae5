"""Intervals of steps, epochs, time or percent of a stage: `stop_after`, `watch`, `save`, `checkpoint`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ..text import nearest

UNITS = ("steps", "epochs", "seconds", "minutes", "hours", "percent")
OWN = "own steps"  # counts only steps whose batch contains the embedding
SECONDS = {"seconds": 1.0, "minutes": 60.0, "hours": 3600.0}
ROUNDING = 1e-9
_FORM = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*(own steps?|\S+)\s*")
_EXAMPLES = 'never, or a number and its unit: "500 steps", "10 epochs", "30 minutes", "60 %"'


@dataclass(frozen=True)
class Clock:
    """Progress of a train stage: `step` counts from 0, `seconds` since its first step."""

    step: int
    steps: int
    steps_per_epoch: float
    seconds: float


@dataclass(frozen=True)
class Every:
    """An interval: `value` in `unit` (one of UNITS or OWN), or never. Used for stop_after too."""

    value: float
    unit: str

    @property
    def by_time(self) -> bool:
        """Whether it depends on how fast the machine is."""
        return self.unit in SECONDS

    def count(self, clock: Clock) -> float:
        """How many intervals have passed since the start of the stage; in a resumed run earlier processes count."""
        if self.unit == "never":
            return 0.0
        if self.by_time:
            return clock.seconds / (self.value * SECONDS[self.unit])
        length = {"steps": 1.0, "epochs": clock.steps_per_epoch, "percent": clock.steps / 100}[self.unit]
        return clock.step / (self.value * length)

    def due(self, clock: Clock, before: float) -> bool:
        """Whether an interval ended in the last step, before which the stage had taken `before` seconds."""
        last = replace(clock, step=clock.step - 1, seconds=before)
        return int(self.count(clock) + ROUNDING) > int(self.count(last) + ROUNDING)

    def __str__(self) -> str:
        """The interval as written in a recipe."""
        return "never" if self.unit == "never" else f"{self.value:.9g} {'%' if self.unit == 'percent' else self.unit}"


def parse_interval(text: str, *, own: bool = False) -> Every:
    """Parse an interval such as "500 steps"; the message of a ValueError names the nearest known unit.

    `own` is for stop_after, where "own steps" are allowed.
    """
    if text == "never":
        return Every(0.0, "never")
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
    if value == 0 and own:
        raise ValueError("0 never trains the embedding; use train = false instead")
    if value == 0:
        raise ValueError("0 never happens; remove it, or give an interval")
    if unit == "percent" and value > 100:
        raise ValueError(f"{match[1]} % is more than the stage; at most 100 %")
    return Every(value, unit)


def _unit(text: str) -> str | None:
    text = "percent" if text == "%" else text
    return next((unit for unit in (*UNITS, OWN) if text in (unit, unit.rstrip("s"))), None)


class Stops:
    """Finds the embeddings that reach their stop_after, each once. The cost of a step does not depend on the number of
    embeddings.
    """

    def __init__(self, rules: Mapping[str, Every], recorded: Mapping[str, int] | None = None) -> None:
        """`recorded` has the step at which an embedding stopped in an earlier process of this run: in a resumed run it
        stops at the same step, whatever the clock says."""
        self.counts = {embedding: 0 for embedding, rule in rules.items() if rule.unit == OWN}
        self._rules = rules
        self._waiting: dict[str, list[tuple[Every, str]]] = {}
        for embedding, rule in rules.items():
            if embedding in (recorded or {}) and rule.unit != OWN:
                rule = Every(float((recorded or {})[embedding]), "steps")
            if rule.unit not in ("never", OWN):
                self._waiting.setdefault(rule.unit, []).append((rule, embedding))
        for waiting in self._waiting.values():
            waiting.sort(key=lambda pair: pair[0].value, reverse=True)

    def due(self, clock: Clock) -> list[str]:
        """Embeddings that reached stop_after by steps, epochs or time, in the batch or not."""
        found = []
        for waiting in self._waiting.values():
            while waiting and waiting[-1][0].count(clock) + ROUNDING >= 1:
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
