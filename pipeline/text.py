"""Text for people: names that were meant, numbers of bytes, lines without control characters."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from ..converters.families import Family

ALIKE, SURELY = 0.6, 0.75  # share of letters in common: worth asking, hardly anything else


def nearest(embedding: str, known: Iterable[str], cutoff: float = ALIKE) -> str | None:
    """The known embedding that most resembles the given one, or None when none does."""
    from difflib import get_close_matches

    by_lower = {other.lower(): other for other in known}
    found = get_close_matches(embedding.lower()[:100], list(by_lower), n=1, cutoff=cutoff)
    return by_lower[found[0]] if found else None


def sibling(path: Path) -> str | None:
    """The entry of the path's folder that is called most nearly like it, or None."""
    try:
        return nearest(path.name, os.listdir(path.parent))
    except OSError:
        return None


def did_you_mean(embedding: str, known: Iterable[str]) -> str:
    """`; did you mean 'steps'?`, or else every known embedding, or nothing where there is none."""
    choices = list(known)
    guess = nearest(embedding, choices)
    if guess is not None:
        return f"; did you mean '{guess}'?"
    return f"; known: {', '.join(choices)}" if choices else ""


def size(count: float) -> str:
    """Bytes for people: `3.2 GiB`."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.3g} {unit}"
        count /= 1024
    return f"{count:,.1f} GiB"


def shortened(text: str, most: int = 60) -> str:
    """A text cut where it gets too long for a message."""
    return text if len(text) <= most else text[: most - 1] + "…"


def printable(text: str) -> str:
    """The text with control characters spelled out: recipes and captions of strangers must not steer a terminal."""
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


MICRO = "micro"


def fits_only(base: str, family: Family, widths: Mapping[str, int]) -> str:
    """A sentence for files from a small model, which fit no model of the family's own size; empty for those of others.

    `widths` are those of the model's text encoders, by their keys.
    """
    if all(widths.get(key, size) == size for key, size in family.widths.items()):
        return ""
    name = "the micro model that ships with Pivotune" if base == MICRO else Path(base).name
    return f"These files fit only {name}: other models of {family.title} have text encoders of other sizes."
