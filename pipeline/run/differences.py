"""What differs between the inputs of two runs: recipe, model, data, versions, device."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import PureWindowsPath
from typing import Any

from .changed import changed

# Of a manifest: what a run's bytes depend on, and what it is called in messages.
INPUTS = {"recipe": "recipe", "model": "model", "data": "data", "environment": "environment"}
# What changes no trained byte: the machine's name for the same thing, and texts for people. Which device of its kind
# computes is no matter either; the kind and what it calls itself are in the environment.
HARMLESS = ("recipe.description", "recipe.device", "environment.platform", "model.path")
# What a run that goes on may change: sums over other numbers of processes differ in their last bits only.
ROUNDING = "environment.processes"
# Where paths stand whose files are compared by hash, and the words that may stand there instead.
_DATA_PATHS = tuple(
    re.compile(rf"recipe\.{place}") for place in (r"concept\.\d+\.(images|captions|masks)", r"data\.cache_latents")
)
_MODEL_PATHS = (re.compile(r"(recipe\.)?model\.base"), re.compile(r"recipe\.model\.config"))
_WORDS = ("beside", "file-name", "alpha", "none", "user", "run", "memory", "off", "micro")


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

    @property
    def of_paths(self) -> bool:
        """Whether both values may be paths: texts, and no words with a meaning of their own."""
        return all(isinstance(value, str) and value not in _WORDS for value in (self.old, self.new))

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
