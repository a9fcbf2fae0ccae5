"""Text for messages: suggestions for misspelt names, shortened lists, sizes, lines without control characters."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from ..converters.errors import count_of as count_of
from ..converters.errors import printable as printable
from ..converters.families import Family

ALIKE, SURELY = 0.6, 0.75  # similarity of two names: from here on a suggestion, and nearly certain


def nearest(text: str, known: Iterable[str], cutoff: float = ALIKE) -> str | None:
    """The known name that is most similar to the text, or None if none is similar enough."""
    from difflib import get_close_matches

    by_lower = {name.lower(): name for name in known}
    found = get_close_matches(text.lower()[:100], list(by_lower), n=1, cutoff=cutoff)
    return by_lower[found[0]] if found else None


def did_you_mean(text: str, known: Iterable[str]) -> str:
    """`; did you mean 'steps'?`, else the list of known names, else nothing."""
    choices = list(known)
    guess = nearest(text, choices)
    if guess is not None:
        return f"; did you mean '{guess}'?"
    return f"; known: {', '.join(choices)}" if choices else ""


def did_you_mean_path(path: Path) -> str:
    """`; did you mean 'folder/images'?` for a path that does not exist, if its folder has an entry of similar name."""
    try:
        guess = nearest(path.name, os.listdir(path.parent))
    except OSError:
        guess = None
    return f"; did you mean '{path.parent / guess}'?" if guess else ""


def first_few(items: Sequence[object], count: int = 5, noun: str = "") -> str:
    """The first `count` items as one line: `a, b and 3 more`; `noun` names the rest (`and 3 more files`)."""
    return ", ".join(map(str, items[:count])) + "".join(f" {line}" for line in _rest(items, count, noun))


def first_lines(lines: Sequence[str], count: int, noun: str = "", nouns: str = "") -> list[str]:
    """The first `count` lines, and a line `and 3 more` for the rest; `nouns` is the plural as in `count_of`."""
    return [*lines[:count], *_rest(lines, count, noun, nouns)]


def _rest(items: Sequence[object], count: int, noun: str, nouns: str = "") -> list[str]:
    if len(items) <= count:
        return []
    more = len(items) - count
    return [f"and {count_of(more, f'more {noun}', nouns and f'more {nouns}') if noun else f'{more:,} more'}"]


def format_bytes(count: float) -> str:
    """A number of bytes with its unit: `3.2 GiB`."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.3g} {unit}"
        count /= 1024
    return f"{count:,.1f} GiB"


def shortened(text: str, length: int = 60) -> str:
    """The text, truncated if it is too long for a message."""
    return text if len(text) <= length else text[: length - 1] + "…"


MICRO = "micro"


def fits_only(base: str, family: Family, widths: Mapping[str, int]) -> str:
    """For a small model: a sentence that its files fit no other model of the family. Empty for full-size models.

    `widths` are the vector widths of the model's text encoders.
    """
    if all(widths.get(key, width) == width for key, width in family.widths.items()):
        return ""
    name = "the micro model that ships with Pivotune" if base == MICRO else Path(base).name
    return f"These files fit only {name}: the text encoders of other {family.title} models have other widths."
