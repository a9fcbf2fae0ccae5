"""Problems of a recipe as values: errors stop a run, warnings do not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from ..text import printable, shortened

KeyPath = tuple[str | int, ...]  # ("stage", 2, "steps"), list items counted from 0 as in the parsed document


class Finding(NamedTuple):
    """A problem at a key path; `Document.problem` adds the line."""

    path: KeyPath
    text: str
    severity: str = "error"


@dataclass(frozen=True)
class Problem:
    """`key` is a key as --set takes it, list items counted from 1: `stage.3.steps`. `line` is 0 if there is none.

    `file` is a table of embeddings that caused it; empty for the recipe itself.
    """

    severity: str  # "error" or "warning"
    line: int
    key: str
    text: str
    file: str = ""

    def shown(self, file: object) -> str:
        """One line: file, line, key, cause."""
        where = f"{self.file or file}:{self.line}" if self.line else str(self.file or file)
        mark = "warning: " if self.severity == "warning" else ""
        return printable(": ".join(part for part in (where, self.key, mark + self.text) if part))


def key_text(path: KeyPath) -> str:
    """A key path as --set takes it: list items are counted from 1, special keys are quoted."""
    return ".".join(str(part + 1) if isinstance(part, int) else _key(part) for part in path)


def _key(part: str) -> str:
    plain = part.replace("_", "").replace("-", "")
    return shortened(part) if plain.isascii() and plain.isalnum() else repr(shortened(part))
