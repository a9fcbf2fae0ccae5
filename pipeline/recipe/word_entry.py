"""One word of a table or of a folder of folders, and what is wrong with its settings."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from ... import schemas
from .explain import explain
from .problem import Place, Problem, place
from .stop import parse_stop

TEXTS = ("placeholder", "initial_text")  # of which every word has its own


class Entry(NamedTuple):
    """One word: its name, its own settings, where they stand (file and line), and its folder of pictures."""

    name: str
    own: dict[str, Any]
    file: str
    line: int
    images: Path | None


@dataclass
class Problems:
    """What is wrong, up to a number that somebody would read."""

    most: int
    found: list[Problem]
    more: int = 0
    judged: dict[str, tuple[tuple[Place, str], ...]] = field(default_factory=dict)  # what is wrong with settings

    @property
    def count(self) -> int:
        """How many there are, listed or not."""
        return len(self.found) + self.more

    def add(self, file: Path | str, line: int, path: Place, text: str) -> None:
        if len(self.found) < self.most:
            self.found.append(Problem("error", line, place(path), text, str(file)))
        else:
            self.more += 1


def check_word(word: Mapping[str, Any], entry: Entry, problems: Problems) -> None:
    """A finished word against the schema of an [[embedding]], as far as the recipe itself has not been checked."""
    told = {key: value for key, value in entry.own.items() if key not in TEXTS}
    if repr(told) not in problems.judged:  # thousands of rows have few different settings
        problems.judged[repr(told)] = tuple(_violations(told))
    wrong = problems.judged[repr(told)]
    texts = {key: word[key] for key in TEXTS if key in word}
    if not all(_is_text(key, value) for key, value in texts.items()):
        wrong = (*wrong, *_violations(texts))
    for path, text in wrong:
        problems.add(entry.file, entry.line, path, text)


def _violations(table: dict[str, Any]) -> Iterator[tuple[Place, str]]:
    for key, value in table.items():
        if any(isinstance(one, float) and not math.isfinite(one) for one in _leaves(value)):
            yield (key,), "no usable number"
            return
    found = [pair for error in schemas.violations(table, "tables/embedding.json") for pair in explain(error)]
    yield from found
    stop = table.get("stop_after")
    if not found and isinstance(stop, str):
        try:
            parse_stop(stop, own=True)
        except ValueError as error:
            yield ("stop_after",), str(error)


def _leaves(value: Any) -> list[Any]:
    return list(value.values()) if isinstance(value, dict) else [value]


def _is_text(key: str, value: Any) -> bool:
    """What nearly every text is: right. All others are looked at again, slowly, to say what is wrong."""
    return isinstance(value, str) and bool(value) and (key != "placeholder" or _placeholder().search(value) is not None)


@cache
def _placeholder() -> re.Pattern[str]:
    pattern = schemas.schema("tables/embedding.json")["properties"]["placeholder"]["pattern"]
    return re.compile(re.sub(r"\$$", r"\\Z", pattern))
