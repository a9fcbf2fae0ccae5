"""What differs between the inputs of two runs: recipe, model, data, versions, device."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PureWindowsPath
from typing import Any

from ..data.files import IMAGES
from ..recipe.model import CAPTION_SOURCES, MASK_SOURCES, PARTS
from ..text import count_of, first_few, first_lines

LONG, BEFORE, SHOWN = 60, 12, 4  # characters of a value, of them before the first difference, entries of a list
_HASH = re.compile(r"[0-9a-f]{64}")
_NAMES = ("placeholder", "table", "folders", "images", "kind", "name")  # keys that identify a recipe's tables


def describe_change(old: Any, new: Any) -> str:
    """`100, now 200`; of long texts the part that differs, of long lists the entries that were added and removed."""
    if isinstance(old, list) and isinstance(new, list) and max(len(str(old)), len(str(new))) > LONG:
        return _of_lists([_label(one) for one in old], [_label(one) for one in new])
    texts = ["nothing" if value is None else str(value) for value in (old, new)]
    same = next((at for at, pair in enumerate(zip(*texts, strict=False)) if pair[0] != pair[1]), min(map(len, texts)))
    begin = max(0, same - BEFORE) if max(map(len, texts)) > LONG else 0
    before, now = (_cut(text, begin) for text in texts)
    return f"{before}, now {now}"


def _cut(text: str, begin: int) -> str:
    """A text, or the part of a long one that starts at `begin`."""
    if _HASH.fullmatch(text):
        return f"{text[:12]}…"
    if len(text) <= LONG:
        return text
    end = begin + LONG
    return f"{'…' if begin else ''}{text[begin:end]}{'…' if end < len(text) else ''}"


def _label(one: Any) -> str:
    """A short name of a list's entry."""
    named = next((str(one[key]) for key in _NAMES if one.get(key)), None) if isinstance(one, dict) else None
    return named if named is not None else str(one)


def _of_lists(old: Sequence[str], new: Sequence[str]) -> str:
    added, removed = [one for one in new if one not in old], [one for one in old if one not in new]
    parts = [f"{what} {few(names)}" for what, names in (("removed", removed), ("added", added)) if names]
    if not parts:
        counts = f"{count_of(len(old), 'entry', 'entries')}, now {len(new)}"
        parts = [counts if len(old) != len(new) else "the entries' order or options"]
    return "; ".join(parts)


def few(names: Sequence[str]) -> str:
    """The first few names, each shortened, and how many more there are."""
    return first_few([_cut(name, 0) for name in names], SHOWN)


# Parts of a manifest that a run's bytes depend on, and their names in messages.
INPUTS = {"recipe": "recipe", "model": "model", "data": "data", "environment": "environment"}
# Keys that change no trained byte: paths and names of the same thing, and descriptions. The number of a device does not
# matter either; its kind and model are in the environment.
HARMLESS = ("recipe.description", "recipe.device", "environment.platform", "model.path")
# A resumed run may change this: sums over another number of processes differ only in their last bits.
ROUNDING = "environment.processes"
# Keys with paths whose files are compared by hash, and values of these keys that are no paths.
_DATA_PATHS = tuple(
    re.compile(rf"recipe\.{place}") for place in (r"concept\.\d+\.(images|captions|masks)", r"data\.cache_latents")
)
_MODEL_KEYS = "|".join(("config", "image_encoder", "decoder", "denoiser", *PARTS))
_MODEL_PATHS = (re.compile(r"(recipe\.)?model\.base"), re.compile(rf"recipe\.model\.({_MODEL_KEYS})"),
                re.compile(r"recipe\.stage\.\d+\.lora\.\d+\.base"))  # fmt: skip
_KEYWORDS = (*CAPTION_SOURCES, *MASK_SOURCES, "user", "run", "memory", "off", "micro")


@dataclass(frozen=True)
class Difference:
    """A key such as `recipe.stage.3.steps` with its two JSON values; None where there is none.

    As text: `recipe.stage.3.steps: 100, now 200`.
    """

    key: str
    old: Any
    new: Any

    def __str__(self) -> str:
        return f"{self.key}: {describe_change(self.old, self.new)}"

    @property
    def of_paths(self) -> bool:
        """Whether both values may be paths: texts that are no keywords."""
        return all(isinstance(value, str) and value not in _KEYWORDS for value in (self.old, self.new))

    def within(self, *keys: str) -> bool:
        """Whether it is one of these keys, or below one of them."""
        return any(self.key == key or self.key.startswith(f"{key}.") for key in keys)


def input_differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[Difference]:
    """Every difference that matters; empty when the result is the same, byte for byte.

    Moved folders and files are no differences: images, captions, masks and models are compared by their hashes.
    """
    found = (one for part, name in INPUTS.items() for one in _differ(before.get(part), now.get(part), name))
    data, model = _same_files(before, now, "data", "files"), _same_files(before, now, "model", "sha256")
    moved = [*(_DATA_PATHS if data else ()), *(_MODEL_PATHS if model else ())]
    return [
        one
        for one in found
        if not one.within(*HARMLESS, *(["data.files"] if data else []))
        and not (one.of_paths and any(pattern.fullmatch(one.key) for pattern in moved))
    ]


def _same_files(before: Mapping[str, Any], now: Mapping[str, Any], part: str, key: str) -> bool:
    """Whether both have files with the same names and hashes in the same order, in any folders."""
    old, new = (
        [(PureWindowsPath(path).name, digest) for path, digest in ((one.get(part) or {}).get(key) or {}).items()]
        for one in (before, now)  # a Windows path accepts both kinds of slashes
    )
    return bool(old) and old == new


def _differ(old: Any, new: Any, key: str) -> Iterator[Difference]:
    """The differences of two JSON values; tables are counted from 1 as everywhere."""
    if isinstance(old, dict) and isinstance(new, dict):
        for name in dict.fromkeys([*old, *new]):
            yield from _differ(old.get(name), new.get(name), f"{key}.{name}")
    elif _are_tables(old) and _are_tables(new) and len(old) == len(new):
        for number, pair in enumerate(zip(old, new, strict=True), 1):
            yield from _differ(*pair, f"{key}.{number}")
    elif old != new:
        yield Difference(key, old, new)


def _are_tables(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, dict | list) for one in value)


# Keys below which there are hashes of files.
_FILES = ("data.files", "model.sha256")
# Keys that follow from the data's files and from the recipe.
_DERIVED = ("data.images", "data.concepts", "data.captions", "data.coverage")


def difference_lines(differences: Sequence[Difference], most: int) -> list[str]:
    """At most `most` lines, and one with the number of others; files are summed up in one line for each kind."""
    rest = [one for one in differences if not one.within(*_FILES)]
    derived = [one for one in rest if one.within(*_DERIVED)]
    if len(derived) < len(differences):
        rest = [one for one in rest if one not in derived]
    lines = [str(one) for one in rest]
    for key in _FILES:
        lines += _file_lines(key, [one for one in differences if one.within(key)])
    return first_lines(lines, most)


def _file_lines(key: str, files: Sequence[Difference]) -> Iterator[str]:
    """`data: 3 images added (a.png, b.png, c.png), 1 changed (d.png)`, and the like of other files."""
    part = key.partition(".")[0]
    images = [one for one in files if part == "data" and one.key.lower().endswith(tuple(IMAGES))]
    others = [one for one in files if one not in images]
    for what, group in (("image", images), ("file", others)):
        found = {
            "added": [one for one in group if one.old is None],
            "removed": [one for one in group if one.new is None],
            "changed": [one for one in group if None not in (one.old, one.new)],
        }
        parts: list[str] = []
        for how, ones in found.items():
            if ones:
                noun = "" if parts else f" {what}{'s' if len(ones) > 1 else ''}"
                parts.append(f"{len(ones)}{noun} {how} ({few([one.key[len(key) + 1 :] for one in ones])})")
        if parts:
            yield f"{part}: {', '.join(parts)}"
