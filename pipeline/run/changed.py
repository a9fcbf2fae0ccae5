"""One changed JSON value as a few words for people: what differs must be in them, whatever is left out."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

LONG, BEFORE, SHOWN = 60, 12, 4  # characters of a value, those before its first difference, entries of a list
_HASH = re.compile(r"[0-9a-f]{64}")
_NAMES = ("placeholder", "table", "folders", "images", "kind", "name")  # what a recipe's tables are told apart by


def changed(old: Any, new: Any) -> str:
    """`100, now 200`; of long texts the part that differs, of long lists what was added and removed."""
    if isinstance(old, list) and isinstance(new, list) and max(len(str(old)), len(str(new))) > LONG:
        return _of_lists([_label(one) for one in old], [_label(one) for one in new])
    texts = ["nothing" if value is None else str(value) for value in (old, new)]
    same = next((at for at, pair in enumerate(zip(*texts, strict=False)) if pair[0] != pair[1]), min(map(len, texts)))
    begin = max(0, same - BEFORE) if max(map(len, texts)) > LONG else 0
    before, now = (_cut(text, begin) for text in texts)
    return f"{before}, now {now}"


def _cut(text: str, begin: int) -> str:
    """A text, or as much of a long one as stands from `begin` on."""
    if _HASH.fullmatch(text):
        return f"{text[:12]}…"
    if len(text) <= LONG:
        return text
    end = begin + LONG
    return f"{'…' if begin else ''}{text[begin:end]}{'…' if end < len(text) else ''}"


def _label(one: Any) -> str:
    """What an entry of a list is called."""
    named = next((str(one[key]) for key in _NAMES if one.get(key)), None) if isinstance(one, dict) else None
    return named if named is not None else str(one)


def _of_lists(old: Sequence[str], new: Sequence[str]) -> str:
    added, removed = [one for one in new if one not in old], [one for one in old if one not in new]
    parts = [f"{what} {few(names)}" for what, names in (("removed", removed), ("added", added)) if names]
    if not parts:
        parts = [f"{len(old)} entries, now {len(new)}" if len(old) != len(new) else "the entries' order or options"]
    return "; ".join(parts)


def few(names: Sequence[str]) -> str:
    """The first few names, each cut to a line's part, and how many more there are."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(_cut(name, 0) for name in names[:SHOWN]) + more
