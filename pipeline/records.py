"""The records of a run, manifest.json and metrics.jsonl: how they are written, and checked when they are read."""

from __future__ import annotations

import hashlib
import json
import math
import os
import stat
from collections.abc import Iterator, Mapping
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

from pivotune import schemas

from .errors import StageError
from .run_folder import NUMBER, bounded_json, is_inside, read_plain_file, shape_error

METRICS = "metrics.jsonl"
REPORT = "report.html"
LONGEST = 64 * 2**20  # bytes of a line
_MAYBE = (*NUMBER, None)  # NaN and infinity are written as null
_IMAGE = {"path": str, "prompt": str, "seed?": (int, None), "embedding?": (str, None)}
_VECTORS = {"norm?": [_MAYBE], "distance?": [_MAYBE], "nearest?": [(str, None)]}
_ROW = {
    "stage": int, "step": int, "loss?": _MAYBE, "gradient_norm?": _MAYBE, "seconds?": _MAYBE, "loss_scale?": _MAYBE,
    "learning_rate?": {"*": _MAYBE}, "gradient_norms?": {"*": _MAYBE}, "embeddings?": {"*": {"*": _VECTORS}},
    "images?": [_IMAGE], "saved?": str, "validation?": _MAYBE,
}  # fmt: skip


def parse_row(line: bytes) -> dict[str, Any]:
    """One line of the metrics. ValueError if it is malformed or names an image outside the run folder."""
    row = bounded_json(line)
    wrong = shape_error(row, _ROW)
    if wrong:
        raise ValueError(wrong)
    if not all(is_inside(image["path"]) for image in row.get("images", ())):
        raise ValueError("an image's path is not inside the run folder")
    return row


def require_logged_lines(path: Path, recorded: Mapping[str, Any]) -> bytes:
    """The metrics up to a checkpoint, by its `recorded` bytes and sha256. StageError if they are missing or differ."""
    size, lines = recorded["bytes"], b""
    try:
        if stat.S_ISREG(path.lstat().st_mode) and 0 <= size <= path.lstat().st_size:
            with path.open("rb") as file:
                lines = file.read(size)
    except FileNotFoundError:
        pass
    if hashlib.sha256(lines).hexdigest() != recorded["sha256"] or len(lines) != size:
        cause = "changed since the checkpoint was written" if path.exists() else "is missing"
        if path.is_symlink():
            cause = "is a link, which is not followed"
        raise StageError(f"{path}: {cause}; restore it, or start over with --fresh (without --out or with another one)")
    return lines


def read_rows(folder: Path) -> Iterator[dict[str, Any] | None]:
    """Each line of a run's metrics; None for a malformed one. Nothing if there is no metrics file."""
    path = folder / METRICS
    try:
        if not stat.S_ISREG(path.lstat().st_mode):
            return
    except FileNotFoundError:
        return
    with path.open("rb") as lines:
        while line := lines.readline(LONGEST):
            if line.strip():
                try:
                    yield parse_row(line)
                except ValueError:
                    yield None


Json = dict[str, Any]
MANIFEST = "manifest.json"
_PATHS = ("artefacts", "images")  # lists of entries with a path in the run folder


def read_manifest(folder: Path) -> dict[str, Any]:
    """The run's manifest: it fits its schema and names only files inside the folder. StageError if there is none."""
    path = folder / MANIFEST
    try:
        data = read_plain_file(path)
        manifest = bounded_json(data)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise StageError(f"{folder}: no manifest.json; not a run folder") from error
    except (OSError, ValueError) as error:  # bad JSON, bad UTF-8
        raise StageError(f"{path}: not a manifest ({error})") from error
    wrong = _schema_error_of(data)
    if wrong:
        raise StageError(f"{path}: not a manifest of this version of Pivotune ({wrong})")
    return manifest


def unreadable_reason(folder: Path) -> str:
    """What is wrong with a folder's manifest, in brackets; empty if there is none or it is valid."""
    if not os.path.lexists(folder / MANIFEST):
        return ""
    try:
        read_manifest(folder)
    except StageError as error:
        return f" ({error})"
    return ""


def manifest_or_none(folder: Path) -> dict[str, Any] | None:
    """The manifest in a folder, or None if there is none or it is invalid."""
    try:
        return read_manifest(folder)
    except StageError:
        return None


@lru_cache(maxsize=2)
def _schema_error_of(data: bytes) -> str:
    """As `_schema_error`, for the bytes of a file. Cached: a run reads its manifest several times, and validating ten
    thousand embeddings takes seconds."""
    return _schema_error(bounded_json(data))


def _schema_error(manifest: Any) -> str:
    """The first key at which a JSON value is not a manifest, and why; empty if it is one."""
    if not isinstance(manifest, dict):
        return "expected an object"
    recipe = manifest.get("recipe")
    found = chain(
        ((one, ()) for one in schemas.violations(manifest, MANIFEST)),
        # Keys that an older recipe lacks do not matter here: resume and replay check them.
        ((one, ("recipe",)) for one in schemas.violations(recipe, "recipe.json") if one.validator != "required"),
    )
    for one, start in found:
        place = ".".join(map(str, (*start, *one.absolute_path)))
        return f"{place or 'top level'}: {one.message if len(one.message) < 120 else one.validator}"
    for name in _PATHS:
        for number, row in enumerate(manifest[name]):
            if not is_inside(row["path"]):
                return f"{name}.{number}.path: not a path inside the run folder"
    return ""


def json_safe(value: Any) -> Any:
    """The same value with None for NaN and infinity, which JSON does not have."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: json_safe(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [json_safe(one) for one in value]
    return value


class Metrics:
    """Writes `metrics.jsonl` of a run folder; each line is flushed at once."""

    def __init__(self, folder: Path, recorded: Mapping[str, Any] | None = None, *, write: bool = True) -> None:
        """Continue after the lines that a checkpoint has `recorded` (see `settled`); later lines of the earlier process
        are dropped. StageError if the recorded lines are missing or differ.

        With write = False nothing is opened or written: another process does that.
        """
        self._file: BinaryIO | None = None
        self._digest = hashlib.sha256()
        if not write:
            return
        path = folder / METRICS
        before = require_logged_lines(path, recorded) if recorded else b""
        self._digest.update(before)
        self._file = path.open("a+b")
        self._file.truncate(len(before))

    def settled(self) -> dict[str, Any]:
        """Length and hash of the lines so far, which are flushed to the disk first; a checkpoint records them."""
        if self._file is None:
            return {"bytes": 0, "sha256": self._digest.hexdigest()}
        os.fsync(self._file.fileno())
        return {"bytes": os.fstat(self._file.fileno()).st_size, "sha256": self._digest.hexdigest()}

    def write(self, row: dict[str, Any]) -> None:
        """Append a line."""
        if self._file is None:
            return
        line = json.dumps(json_safe(row), ensure_ascii=False).encode() + b"\n"
        self._file.write(line)
        self._file.flush()
        self._digest.update(line)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


def read_metrics(folder: Path) -> tuple[list[Json], int]:
    """The steps in order, each once, and the number of malformed lines.

    A resumed run repeats the steps after its checkpoint: the later line counts.
    """
    steps: dict[tuple[int, int], Json] = {}
    unread = 0
    for row in read_rows(folder):
        if row is None:
            unread += 1
        else:
            steps[row["stage"], row["step"]] = row
    return [steps[key] for key in sorted(steps)], unread
