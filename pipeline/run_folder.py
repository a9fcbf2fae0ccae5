"""Safe reading of a run folder that may come from someone else: plain files inside it, JSON of bounded depth and size.

Links in a run folder are never followed; pipes and devices are never opened.
"""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path, PurePosixPath
from typing import Any

from .errors import StageError

LARGEST = 512 * 2**20  # bytes of a manifest
DEEPEST, WIDEST = 64, 2**64  # levels of nesting; largest whole number
# Files that are written in place: a hard link to one of them would change with it.
_IN_PLACE = {"metrics.jsonl", ".lock", "finished/finished.jsonl"}
Shape = Any  # a type, a tuple of shapes (one of them), [shape], {"*": shape}, or {"key": shape, "maybe?": shape}
NUMBER = (int, float)


def require_own_files(run: Path) -> None:
    """StageError for an entry of a run folder that is not a plain file or folder, or that is written in place and has a
    hard link. The run folder itself may be a link."""
    folders = [run]
    while folders:
        try:
            entries = list(os.scandir(folders.pop()))
        except FileNotFoundError:
            continue  # deleted by a run in progress
        for entry in entries:
            try:
                about = entry.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue
            kind = _special_kind(entry, about)
            if kind:
                raise StageError(f"{entry.path}: is {kind}; remove it from the run folder")
            if stat.S_ISDIR(about.st_mode):
                folders.append(Path(entry.path))
            elif about.st_nlink > 1 and Path(entry.path).relative_to(run).as_posix() in _IN_PLACE:
                raise StageError(f"{entry.path}: is a hard link to a file that would change too; replace it by a copy")


def _special_kind(entry: os.DirEntry[str], about: os.stat_result) -> str:
    if stat.S_ISLNK(about.st_mode) or getattr(entry, "is_junction", bool)():
        return "a link"
    return "" if stat.S_ISDIR(about.st_mode) or stat.S_ISREG(about.st_mode) else "a pipe or a device"


def file_inside(folder: Path, name: object) -> Path:
    """The plain file that a manifest, a line of metrics or a checkpoint names. StageError if it is not a plain file, is
    outside the folder, or is reached through a link."""
    parts = PurePosixPath(name).parts if isinstance(name, str) else ()
    if not isinstance(name, str) or not parts or not is_inside(name):
        raise StageError(f"{folder}: {str(name)[:200]!r} is not a path inside the run folder")
    path = folder
    for part in parts:
        path = path / part
        if path.is_symlink() or getattr(path, "is_junction", bool)():
            raise StageError(f"{path}: is a link; links in a run folder are not followed")
    if not path.is_file():
        raise StageError(f"{path}: not a file")
    return path


def is_inside(path: str) -> bool:
    """Whether a relative path, as a manifest has it, stays inside its folder."""
    parts = path.split("/")
    return not any(
        part in ("", ".", "..") or "\\" in part or "\0" in part or os.path.splitdrive(part)[0]  # Windows: `a/C:b`
        for part in parts
    )


def read_plain_file(path: Path, largest: int = LARGEST) -> bytes:
    """The bytes of a plain file. FileNotFoundError if it does not exist, ValueError for anything else or too large."""
    about = path.lstat()
    if not stat.S_ISREG(about.st_mode):
        raise ValueError("a link, which is not followed" if stat.S_ISLNK(about.st_mode) else "not a plain file")
    if about.st_size > largest:
        raise ValueError(f"larger than {largest:,} bytes")
    return path.read_bytes()


def bounded_json(text: bytes | str, *, infinite: bool = False) -> Any:
    """The value of a JSON text. ValueError also for NaN and Infinity (unless `infinite`), numbers beyond 64 bits, lone
    surrogates, and nesting deeper than any file that Pivotune writes."""
    try:
        constant = float if infinite else _refuse_constant
        value = json.loads(text, parse_constant=constant, parse_int=_checked_integer, parse_float=_checked_float)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    level, depth = [value], 0
    while level:
        if depth > DEEPEST:
            raise ValueError("nested too deeply")
        below: list[Any] = []
        for one in level:
            if isinstance(one, str):
                one.encode("utf-8", "surrogateescape")  # how file names that are not UTF-8 are escaped
            elif isinstance(one, list):
                below += one
            elif isinstance(one, dict):
                below += [*one, *one.values()]
        level, depth = below, depth + 1
    return value


def _refuse_constant(text: str) -> Any:
    raise ValueError(f"{text} is not valid JSON")


def _checked_integer(text: str) -> int:
    if len(text) > 20 or abs(int(text)) > WIDEST:
        raise ValueError("a number of more than 64 bits")
    return int(text)


def _checked_float(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise ValueError("a number that is too large")
    return value


def shape_error(value: Any, shape: Shape, place: str = "") -> str | None:
    """The first key whose value does not have its shape, and why; None if all do. A bool is not a number."""
    if isinstance(shape, tuple):
        found = [shape_error(value, one, place) for one in shape]
        return None if None in found else found[0]
    if isinstance(shape, list):
        if not isinstance(value, list):
            return f"{place or 'it'} is not a list"
        wrong = (shape_error(one, shape[0], f"{place}.{at}") for at, one in enumerate(value))
        return next(filter(None, wrong), None)
    if isinstance(shape, dict):
        return _table_error(value, shape, place)
    if shape is None:
        return None if value is None else f"{place} is not null"
    if isinstance(value, shape) and (shape is bool or not isinstance(value, bool)):
        return None
    return f"{place or 'it'} is not a {'number' if shape in NUMBER else shape.__name__}"


def _table_error(value: Any, shape: dict[str, Shape], place: str) -> str | None:
    if not isinstance(value, dict):
        return f"{place or 'it'} is not a table"
    start = f"{place}." if place else ""
    for key, wanted in shape.items():
        name = key.removesuffix("?")
        if key == "*":
            wrong = (shape_error(one, wanted, start + other) for other, one in value.items())
            first = next(filter(None, wrong), None)
        elif name in value:
            first = shape_error(value[name], wanted, start + name)
        else:
            first = None if key.endswith("?") else f"{start}{name} is missing"
        if first:
            return first
    return None
