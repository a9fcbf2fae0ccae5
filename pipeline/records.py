"""The files in which a run is recorded, manifest.json and metrics.jsonl: written line by line, checked when read."""

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
from .run_folder import NUMBER, bounded_json, is_inside, misfit, plain_bytes

METRICS = "metrics.jsonl"
LONGEST = 64 * 2**20  # bytes of a line
_MAYBE = (*NUMBER, None)  # a number that JSON cannot spell is written as null
_IMAGE = {"path": str, "prompt": str, "seed?": (int, None), "embedding?": (str, None)}
_GAUGED = {"norm?": [_MAYBE], "moved?": [_MAYBE], "nearest?": [(str, None)]}
_ROW = {
    "stage": int, "step": int, "loss?": _MAYBE, "gradient_norm?": _MAYBE, "seconds?": _MAYBE, "loss_scale?": _MAYBE,
    "learning_rate?": {"*": _MAYBE}, "gradient_norms?": {"*": _MAYBE}, "embeddings?": {"*": {"*": _GAUGED}},
    "images?": [_IMAGE], "saved?": str,
}  # fmt: skip


def row_of(line: bytes) -> dict[str, Any]:
    """A line of the metrics. ValueError when it is none, or names an image outside the run's folder."""
    row = bounded_json(line)
    wrong = misfit(row, _ROW)
    if wrong:
        raise ValueError(wrong)
    if not all(is_inside(image["path"]) for image in row.get("images", ())):
        raise ValueError("an image's path is not inside the run's folder")
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
                    yield row_of(line)
                except ValueError:
                    yield None


MANIFEST = "manifest.json"
_PATHS = ("artefacts", "images")  # lists of what has a path in the run's folder


def read_manifest(folder: Path) -> dict[str, Any]:
    """The run's manifest, which fits its schema and names only files inside. StageError where there is none."""
    path = folder / MANIFEST
    try:
        data = plain_bytes(path)
        manifest = bounded_json(data)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise StageError(f"{folder}: no manifest.json, so this is not the folder of a run") from error
    except (OSError, ValueError) as error:  # bad JSON, bad UTF-8
        raise StageError(f"{path}: not a manifest ({error})") from error
    wrong = _verdict(data)
    if wrong:
        raise StageError(f"{path}: not a manifest of this version of Pivotune ({wrong})")
    return manifest


def why_unread(folder: Path) -> str:
    """What is wrong with the manifest that a folder has, in brackets; empty where there is none, or nothing wrong."""
    if not os.path.lexists(folder / MANIFEST):
        return ""
    try:
        read_manifest(folder)
    except StageError as error:
        return f" ({error})"
    return ""


def left_behind(folder: Path) -> dict[str, Any] | None:
    """The manifest in a folder, or None where there is none that can be read."""
    try:
        return read_manifest(folder)
    except StageError:
        return None


@lru_cache(maxsize=2)
def _verdict(data: bytes) -> str:
    """What keeps these bytes from being a manifest. A run reads its own several times, and a schema of ten thousand
    embeddings takes seconds to apply."""
    return _wrong(bounded_json(data))


def _wrong(manifest: Any) -> str:
    """What keeps a JSON value from being a manifest: the first place and why; empty where it is one."""
    if not isinstance(manifest, dict):
        return "expected an object"
    recipe = manifest.get("recipe")
    found = chain(
        ((one, ()) for one in schemas.violations(manifest, MANIFEST)),
        # What an old recipe lacks is none of a reader's business: a run that goes on or is replayed looks by itself.
        ((one, ("recipe",)) for one in schemas.violations(recipe, "recipe.json") if one.validator != "required"),
    )
    for one, start in found:
        place = ".".join(map(str, (*start, *one.absolute_path)))
        return f"{place or 'at its top'}: {one.message if len(one.message) < 120 else one.validator}"
    for name in _PATHS:
        for number, row in enumerate(manifest[name]):
            if not is_inside(row["path"]):
                return f"{name}.{number}.path: no path inside the run's folder"
    return ""


def finite(value: Any) -> Any:
    """The same value with every number that JSON cannot spell as None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [finite(one) for one in value]
    return value


class Metrics:
    """Writes `metrics.jsonl` of a run's folder; what a step writes can be read at once."""

    def __init__(self, folder: Path, kept: Mapping[str, Any] | None = None, *, write: bool = True) -> None:
        """Go on behind what a checkpoint has `kept` of an earlier process (see `settled`); what that wrote after it is
        done again. StageError when it is no longer there as it was.

        Without `write` nothing is opened or written: another process does.
        """
        self._file: BinaryIO | None = None
        self._digest = hashlib.sha256()
        if not write:
            return
        path = folder / METRICS
        before = kept_lines(path, kept) if kept else b""
        self._digest.update(before)
        self._file = path.open("a+b")
        self._file.truncate(len(before))

    def settled(self) -> dict[str, Any]:
        """What was written so far, by length and hash; it is on the disk now: a checkpoint can rely on it."""
        if self._file is None:
            return {"bytes": 0, "sha256": self._digest.hexdigest()}
        os.fsync(self._file.fileno())
        return {"bytes": os.fstat(self._file.fileno()).st_size, "sha256": self._digest.hexdigest()}

    def write(self, row: dict[str, Any]) -> None:
        """Append a line."""
        if self._file is None:
            return
        line = json.dumps(finite(row), ensure_ascii=False).encode() + b"\n"
        self._file.write(line)
        self._file.flush()
        self._digest.update(line)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


__all__ = ["Json", "read_manifest", "read_metrics"]

Json = dict[str, Any]


def read_metrics(folder: Path) -> tuple[list[Json], int]:
    """The steps in order, each once, and how many lines could not be read.

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
