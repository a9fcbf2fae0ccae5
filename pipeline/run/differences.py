"""What differs between the inputs of two runs: recipe, model, data, versions, device."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from .changed import changed

# Of a manifest: what a run's bytes depend on, and what it is called in messages.
INPUTS = {"recipe": "recipe", "model": "model", "data": "data", "environment": "environment"}
# What changes no trained byte: the machine's name for the same thing, and texts for people. Which device of its kind
# computes is no matter either; the kind and what it calls itself are in the environment.
HARMLESS = ("recipe.description", "recipe.device", "environment.platform", "model.path")
# What a run that goes on may change: sums over other numbers of processes differ in their last bits only.
ROUNDING = "environment.processes"


@dataclass(frozen=True)
class Difference:
    """One place, as `recipe.stage.3.steps`, with its two JSON values; None where there is none.

    As text it is a line for people: `recipe.stage.3.steps: 100, now 200`.
    """

    place: str
    old: Any
    new: Any

    def __str__(self) -> str:
        return f"{self.place}: {changed(self.old, self.new)}"

    def within(self, *places: str) -> bool:
        """Whether it is one of these places, or lies in one of them."""
        return any(self.place == place or self.place.startswith(f"{place}.") for place in places)


def input_differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[Difference]:
    """Every difference that counts; empty when the same bytes will come out."""
    found = (one for part, name in INPUTS.items() for one in _differ(before.get(part), now.get(part), name))
    return [one for one in found if not one.within(*HARMLESS)]


def _differ(old: Any, new: Any, place: str) -> Iterator[Difference]:
    """Where two JSON values differ; tables are counted from 1 as everywhere."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in dict.fromkeys([*old, *new]):
            yield from _differ(old.get(key), new.get(key), f"{place}.{key}")
    elif _are_tables(old) and _are_tables(new) and len(old) == len(new):
        for number, pair in enumerate(zip(old, new, strict=True), 1):
            yield from _differ(*pair, f"{place}.{number}")
    elif old != new:
        yield Difference(place, old, new)


def _are_tables(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, dict | list) for one in value)
