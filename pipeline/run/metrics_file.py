"""Reads the lines of metrics.jsonl, which may be another's, each held to its form."""

from __future__ import annotations

import hashlib
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..errors import StageError
from .received import NUMBER, bounded_json, is_inside, misfit

NAME = "metrics.jsonl"
LONGEST = 64 * 2**20  # bytes of a line
_MAYBE = (*NUMBER, None)  # a number that JSON cannot spell is written as null
_PICTURE = {"path": str, "prompt": str, "seed?": (int, None), "word?": (str, None)}
_GAUGED = {"norm?": [_MAYBE], "moved?": [_MAYBE], "nearest?": [(str, None)]}
_ROW = {
    "stage": int, "step": int, "loss?": _MAYBE, "gradient_norm?": _MAYBE, "seconds?": _MAYBE, "loss_scale?": _MAYBE,
    "learning_rate?": {"*": _MAYBE}, "gradient_norms?": {"*": _MAYBE}, "words?": {"*": {"*": _GAUGED}},
    "pictures?": [_PICTURE], "saved?": str,
}  # fmt: skip


def row_of(line: bytes) -> dict[str, Any]:
    """A line of the metrics. ValueError when it is none, or names a picture outside the run's folder."""
    row = bounded_json(line)
    wrong = misfit(row, _ROW)
    if wrong:
        raise ValueError(wrong)
    if not all(is_inside(picture["path"]) for picture in row.get("pictures", ())):
        raise ValueError("a picture's path is not inside the run's folder")
    return row


def kept_lines(path: Path, kept: Mapping[str, Any]) -> bytes:
    """What a checkpoint has counted of the metrics (`bytes`, `sha256`). StageError when it is not there as it was."""
    size, lines = kept["bytes"], b""
    try:
        if stat.S_ISREG(path.lstat().st_mode) and 0 <= size <= path.lstat().st_size:
            with path.open("rb") as file:
                lines = file.read(size)
    except FileNotFoundError:
        pass
    if hashlib.sha256(lines).hexdigest() != kept["sha256"] or len(lines) != size:
        what = "is not as it was when the checkpoint was written" if path.exists() else "is gone"
        raise StageError(f"{path} {what}; put it back, or begin anew with --fresh (and without or with another --out)")
    return lines


def read_rows(folder: Path) -> Iterator[dict[str, Any] | None]:
    """Each line of a run's metrics; None for one that cannot be read. Nothing where there is no such file."""
    path = folder / NAME
    try:
        if not stat.S_ISREG(path.lstat().st_mode):
            return
    except FileNotFoundError:
        return
    with path.open("rb") as lines:
        while line := lines.readline(LONGEST):
            if line.strip():
                try:
                    yield row_of(line)
                except ValueError:
                    yield None
