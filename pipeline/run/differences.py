"""What differs between the inputs of two runs: recipe, model, data, versions, device."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

# Of a manifest: what a run's bytes depend on, and what it is called in messages.
INPUTS = {"recipe": "recipe", "model": "model", "data": "data", "environment": "environment"}
# What changes no trained byte: the machine's name for the same thing, and texts for people.
HARMLESS = ("recipe.description", "environment.platform", "model.path")
# What a run that goes on may change: sums over other numbers of processes differ in their last bits only.
ROUNDING = "environment.processes"
_ABSENT = "nothing"


def input_differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """One line a difference, as `recipe.stage.3.steps: 100, now 200`; empty when the same bytes will come out."""
    lines = []
    for part, name in INPUTS.items():
        for place, old, new in _differ(before.get(part), now.get(part), name):
            if not place.startswith(HARMLESS):
                lines.append(f"{place}: {_shown(old)}, now {_shown(new)}")
    return lines


def _differ(old: Any, new: Any, place: str) -> Iterator[tuple[str, Any, Any]]:
    """Places at which two JSON values differ, with both; tables are counted from 1 as everywhere."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in dict.fromkeys([*old, *new]):
            yield from _differ(old.get(key), new.get(key), f"{place}.{key}")
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for number, pair in enumerate(zip(old, new, strict=True), 1):
            yield from _differ(*pair, f"{place}.{number}")
    elif old != new:
        yield place, old, new


def _shown(value: Any) -> str:
    if value is None:
        return _ABSENT
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
