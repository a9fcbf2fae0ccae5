"""The right word for a wrong one."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

ALIKE, SURELY = 0.6, 0.75  # share of letters in common: worth asking, hardly anything else


def nearest(word: str, known: Iterable[str], cutoff: float = ALIKE) -> str | None:
    """The known word that most resembles the given one, or None when none does."""
    from difflib import get_close_matches

    by_lower = {other.lower(): other for other in known}
    found = get_close_matches(word.lower()[:100], list(by_lower), n=1, cutoff=cutoff)
    return by_lower[found[0]] if found else None


def sibling(path: Path) -> str | None:
    """The entry of the path's folder that is called most nearly like it, or None."""
    try:
        return nearest(path.name, os.listdir(path.parent))
    except OSError:
        return None


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`; did you mean 'steps'?`, or else every known word, or nothing where there is none."""
    choices = list(known)
    guess = nearest(word, choices)
    if guess is not None:
        return f"; did you mean '{guess}'?"
    return f"; known: {', '.join(choices)}" if choices else ""
