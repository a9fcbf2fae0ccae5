"""What is wrong with a recipe, as a value: errors stop a run, warnings do not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from ..text import printable, shortened

Place = tuple[str | int, ...]  # ("stage", 2, "steps"), tables counted from 0 as in the parsed document


class Finding(NamedTuple):
    """Something wrong at a path of the document; `Document.problem` gives it a line."""

    path: Place
    text: str
    severity: str = "error"


@dataclass(frozen=True)
class Problem:
    """`place` is written as --set takes it, tables counted from 1: `stage.3.steps`. `line` is 0 where there is none.

    `file` is the table of embeddings to blame; empty for the recipe itself.
    """

    severity: str  # "error" or "warning"
    line: int
    place: str
    text: str
    file: str = ""

    def shown(self, file: object) -> str:
        """One line for people: file, line, place, cause."""
        where = f"{self.file or file}:{self.line}" if self.line else str(self.file or file)
        mark = "warning: " if self.severity == "warning" else ""
        return printable(": ".join(part for part in (where, self.place, mark + self.text) if part))


def place(path: Place) -> str:
    """A path as --set takes it: tables are counted from 1, keys that are not plain are quoted."""
    return ".".join(str(part + 1) if isinstance(part, int) else _key(part) for part in path)


def _key(part: str) -> str:
    plain = part.replace("_", "").replace("-", "")
    return shortened(part) if plain.isascii() and plain.isalnum() else repr(shortened(part))
