"""What differs between the inputs of two runs: recipe, model, data, versions, device."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PureWindowsPath
from typing import Any

from ..data.files import IMAGES

LONG, BEFORE, SHOWN = 60, 12, 4  # characters of a value, those before its first difference, entries of a list
_HASH = re.compile(r"[0-9a-f]{64}")
_NAMES = ("placeholder", "table", "folders", "images", "kind", "name")  # what a recipe's tables are told apart by


def describe_change(old: Any, new: Any) -> str:
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


# Of a manifest: what a run's bytes depend on, and what it is called in messages.
INPUTS = {"recipe": "recipe", "model": "model", "data": "data", "environment": "environment"}
# What changes no trained byte: the machine's name for the same thing, and texts for people. Which device of its kind
# computes is no matter either; the kind and what it calls itself are in the environment.
HARMLESS = ("recipe.description", "recipe.device", "environment.platform", "model.path")
# What a run that goes on may change: sums over other numbers of processes differ in their last bits only.
ROUNDING = "environment.processes"
# Where paths stand whose files are compared by hash, and the embeddings that may stand there instead.
_DATA_PATHS = tuple(
    re.compile(rf"recipe\.{place}") for place in (r"concept\.\d+\.(images|captions|masks)", r"data\.cache_latents")
)
_MODEL_PATHS = (re.compile(r"(recipe\.)?model\.base"), re.compile(r"recipe\.model\.config"))
_EMBEDDINGS = ("beside", "file-name", "alpha", "none", "user", "run", "memory", "off", "micro")


@dataclass(frozen=True)
class Difference:
    """One place, as `recipe.stage.3.steps`, with its two JSON values; None where there is none.

    As text it is a line for people: `recipe.stage.3.steps: 100, now 200`.
    """

    place: str
    old: Any
    new: Any

    def __str__(self) -> str:
        return f"{self.place}: {describe_change(self.old, self.new)}"

    @property
    def of_paths(self) -> bool:
        """Whether both values may be paths: texts, and no embeddings with a meaning of their own."""
        return all(isinstance(value, str) and value not in _EMBEDDINGS for value in (self.old, self.new))

    def within(self, *places: str) -> bool:
        """Whether it is one of these places, or lies in one of them."""
        return any(self.place == place or self.place.startswith(f"{place}.") for place in places)


def input_differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[Difference]:
    """Every difference that counts; empty when the same bytes will come out.

    A folder or file that only lies elsewhere is no difference: images, captions, masks and models are
    compared by their hashes.
    """
    found = (one for part, name in INPUTS.items() for one in _differ(before.get(part), now.get(part), name))
    data, model = _same_files(before, now, "data", "files"), _same_files(before, now, "model", "sha256")
    moved = [*(_DATA_PATHS if data else ()), *(_MODEL_PATHS if model else ())]
    return [
        one
        for one in found
        if not one.within(*HARMLESS, *(["data.files"] if data else []))
        and not (one.of_paths and any(place.fullmatch(one.place) for place in moved))
    ]


def _same_files(before: Mapping[str, Any], now: Mapping[str, Any], part: str, key: str) -> bool:
    """Whether both have files of the same names and hashes in the same order, in whatever folders."""
    old, new = (
        [(PureWindowsPath(path).name, digest) for path, digest in ((one.get(part) or {}).get(key) or {}).items()]
        for one in (before, now)  # a Windows path takes both kinds of slashes
    )
    return bool(old) and old == new


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


# Where hashes of files lie.
_FILES = ("data.files", "model.sha256")
# What follows from the data's files and from the recipe.
_DERIVED = ("data.images", "data.concepts", "data.captions", "data.coverage")


def difference_lines(differences: Sequence[Difference], most: int) -> list[str]:
    """At most `most` lines, and one that says how many more there are; files are counted in one line a kind."""
    rest = [one for one in differences if not one.within(*_FILES)]
    derived = [one for one in rest if one.within(*_DERIVED)]
    if len(derived) < len(differences):
        rest = [one for one in rest if one not in derived]
    lines = [str(one) for one in rest]
    for place in _FILES:
        lines += _file_lines(place, [one for one in differences if one.within(place)])
    more = [f"and {len(lines) - most} more"] if len(lines) > most else []
    return [*lines[:most], *more]


def _file_lines(place: str, files: Sequence[Difference]) -> Iterator[str]:
    """`data: 3 images added (a.png, b.png, c.png), 1 changed (d.png)`, and the like of other files."""
    part = place.partition(".")[0]
    images = [one for one in files if part == "data" and one.place.lower().endswith(tuple(IMAGES))]
    others = [one for one in files if one not in images]
    for what, group in (("image", images), ("file", others)):
        found = {
            "added": [one for one in group if one.old is None],
            "removed": [one for one in group if one.new is None],
            "changed": [one for one in group if None not in (one.old, one.new)],
        }
        said: list[str] = []
        for how, ones in found.items():
            if ones:
                trainable = "" if said else f" {what}{'s' if len(ones) > 1 else ''}"
                said.append(f"{len(ones)}{trainable} {how} ({few([one.place[len(place) + 1 :] for one in ones])})")
        if said:
            yield f"{part}: {', '.join(said)}"
