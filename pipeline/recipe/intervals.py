"""Intervals and limits in steps, epochs, time or percent of a stage: `stop_after`, `save`, `watch`, `checkpoint`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ..text import nearest
from .model import StopAfter

UNITS = ("steps", "epochs", "seconds", "minutes", "hours", "percent")
OWN = "own steps"  # counts only the steps whose batch holds the embedding
_FORM = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*(own steps?|\S+)\s*")
_EXAMPLES = 'never, or a number and its unit: "500 steps", "10 epochs", "30 minutes", "60 %"'


def parse_stop(
    text: str, zero: str = "0 would never train the embedding; write train = false instead", *, own: bool = False
) -> StopAfter:
    """The rule that a text states; ValueError says what is wrong with it and names the nearest right unit.

    Only embeddings have steps of their own: for a rhythm that unit is unknown.
    """
    if text == "never":
        return StopAfter(0.0, "never")
    match = _FORM.fullmatch(text)
    if match is None:
        hint = " did you mean 'never'?" if nearest(text, ["never"]) else ""
        raise ValueError(f"{text!r} is not {_EXAMPLES}.{hint}".rstrip("."))
    value, unit = float(match[1]), _unit(match[2])
    if unit == OWN and not own:
        raise ValueError("'own steps' are an embedding's; here it is steps")
    if unit is None:
        guess = nearest(match[2], [*UNITS, "%"])
        hint = f"did you mean '{match[1]} {guess}'?" if guess else f"known: {', '.join(UNITS[:-1])}, %"
        raise ValueError(f"{match[2]!r} is no unit of time; {hint}")
    if value == 0:
        raise ValueError(zero)
    if unit == "percent" and value > 100:
        raise ValueError(f"{match[1]} % is more than the whole stage; at most 100 %")
    return StopAfter(value, unit)


def _unit(embedding: str) -> str | None:
    embedding = "percent" if embedding == "%" else embedding
    return next((unit for unit in (*UNITS, OWN) if embedding in (unit, unit.rstrip("s"))), None)


def stop_text(stop: StopAfter) -> str:
    """The rule as a recipe writes it."""
    if stop.unit == "never":
        return "never"
    return f"{stop.value:.9g} {'%' if stop.unit == 'percent' else stop.unit}"


SECONDS = {"seconds": 1.0, "minutes": 60.0, "hours": 3600.0}


@dataclass(frozen=True)
class Clock:
    """How far a train stage is: `step` counts from 0, `seconds` since its first step."""

    step: int
    steps: int
    steps_per_epoch: float
    seconds: float


def stopped(rule: StopAfter, clock: Clock) -> bool:
    """Whether an embedding has had all the training its recipe gives it."""
    if rule.unit == "never":
        return False
    if rule.unit in SECONDS:
        return clock.seconds >= rule.value * SECONDS[rule.unit]
    if rule.unit == "percent":
        return clock.step >= clock.steps * rule.value / 100
    return clock.step >= rule.value * (clock.steps_per_epoch if rule.unit == "epochs" else 1)


@dataclass(frozen=True)
class Every:
    """`every` so many steps, epochs, per cent of the stage, seconds, minutes or hours; or never.

    By steps it depends on the step alone; by the clock something is due at the first step after the time has passed.
    """

    every: StopAfter
    steps: int
    steps_per_epoch: float

    def due(self, step: int, before: float, seconds: float) -> bool:
        """Whether a turn has come to its end with this step, counted from 1.

        The step before ended `before` seconds after the stage began, this one `seconds` after it; where a run goes
        on, the seconds of the earlier process count.
        """
        if self.every.unit == "never":
            return False
        if self.every.unit in SECONDS:
            length = self.every.value * SECONDS[self.every.unit]
            return seconds // length > before // length
        return self._turns(step) > self._turns(step - 1)

    def _turns(self, step: int) -> int:
        whole = {"steps": 1.0, "epochs": self.steps_per_epoch, "percent": self.steps / 100}[self.every.unit]
        return int(step / (self.every.value * whole) + 1e-9)


class Stops:
    """Tells of each embedding once that its training is over; what a step costs does not grow with the embeddings that
    wait.
    """

    def __init__(self, rules: Mapping[str, StopAfter], recorded: Mapping[str, int] | None = None) -> None:
        """`recorded` has the step after which an embedding stopped in an earlier process of this run: it stops there
        again, whatever its rule makes of the clock now."""
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
        """Embeddings whose time is over by the clock, in the batch or not."""
        found = []
        for waiting in self._waiting.values():
            while waiting and stopped(waiting[-1][0], clock):
                found.append(waiting.pop()[1])
        return found

    def counted(self, embeddings: Iterable[str]) -> list[str]:
        """Count a step of these embeddings; those that have had all of theirs now."""
        found = []
        for embedding in embeddings:
            if embedding in self.counts:
                self.counts[embedding] += 1
                if self.counts[embedding] >= self._rules[embedding].value:
                    found.append(embedding)
        return found

    def short(self) -> list[tuple[str, int, float]]:
        """Embeddings that have not had as many own steps as their rule gives them: how many they had, of how many."""
        return [
            (embedding, had, self._rules[embedding].value)
            for embedding, had in self.counts.items()
            if had < self._rules[embedding].value
        ]

    def state(self) -> dict[str, Any]:
        return {embedding: count for embedding, count in self.counts.items() if count}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.counts.update({embedding: int(count) for embedding, count in state.items() if embedding in self.counts})
