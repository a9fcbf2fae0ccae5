"""`stop_after`: when a word stands still while the rest of the training goes on."""

from __future__ import annotations

import re

from .model import StopAfter
from .nearest import nearest

UNITS = ("steps", "epochs", "seconds", "minutes", "hours", "percent")
OWN = "own steps"  # counts only the steps whose batch holds the word
_FORM = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*(own steps?|\S+)\s*")
_EXAMPLES = 'never, or a number and its unit: "500 steps", "10 epochs", "30 minutes", "60 %"'


def parse_stop(
    text: str, zero: str = "0 would never train the word; write train = false instead", *, own: bool = False
) -> StopAfter:
    """The rule that a text states; ValueError says what is wrong with it and names the nearest right unit.

    Only words have steps of their own: for a rhythm that unit is unknown.
    """
    if text == "never":
        return StopAfter(0.0, "never")
    match = _FORM.fullmatch(text)
    if match is None:
        hint = " did you mean 'never'?" if nearest(text, ["never"]) else ""
        raise ValueError(f"{text!r} is not {_EXAMPLES}.{hint}".rstrip("."))
    value, unit = float(match[1]), _unit(match[2])
    if unit == OWN and not own:
        raise ValueError("'own steps' are a word's; here it is steps")
    if unit is None:
        guess = nearest(match[2], [*UNITS, "%"])
        hint = f"did you mean '{match[1]} {guess}'?" if guess else f"known: {', '.join(UNITS[:-1])}, %"
        raise ValueError(f"{match[2]!r} is no unit of time; {hint}")
    if value == 0:
        raise ValueError(zero)
    if unit == "percent" and value > 100:
        raise ValueError(f"{match[1]} % is more than the whole stage; at most 100 %")
    return StopAfter(value, unit)


def _unit(word: str) -> str | None:
    word = "percent" if word == "%" else word
    return next((unit for unit in (*UNITS, OWN) if word in (unit, unit.rstrip("s"))), None)


def stop_text(stop: StopAfter) -> str:
    """The rule as a recipe writes it."""
    if stop.unit == "never":
        return "never"
    return f"{stop.value:.9g} {'%' if stop.unit == 'percent' else stop.unit}"
