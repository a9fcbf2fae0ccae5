"""What is read of a run's folder, which may be another's: plain files inside it, and JSON of bounded depth and size.

No link in such a folder is read through, written, deleted or descended; nor is a pipe or a device opened.
"""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path, PurePosixPath
from typing import Any

from .errors import StageError

LARGEST = 512 * 2**20  # bytes of a manifest
DEEPEST, WIDEST = 64, 2**64  # lists in lists; whole numbers
# What is written in place: another name of such a file would change with it.
_IN_PLACE = {"metrics.jsonl", ".lock", "finished/finished.jsonl"}
Shape = Any  # a type, a tuple of shapes (one of them), [shape], {"*": shape}, or {"key": shape, "maybe?": shape}
NUMBER = (int, float)


def require_own_files(run: Path) -> None:
    """StageError for the first thing in a run's folder that is no plain file or folder, or has a second name where it
    is written in place. The folder itself may be reached through a link."""
    folders = [run]
    while folders:
        try:
            entries = list(os.scandir(folders.pop()))
        except FileNotFoundError:
            continue  # a run at work deletes folders
        for entry in entries:
            try:
                about = entry.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue
            kind = _strange(entry, about)
            if kind:
                raise StageError(f"{entry.path}: is {kind}, which no run makes; take it out of the run's folder")
            if stat.S_ISDIR(about.st_mode):
                folders.append(Path(entry.path))
            elif about.st_nlink > 1 and Path(entry.path).relative_to(run).as_posix() in _IN_PLACE:
                raise StageError(f"{entry.path}: has a second name (a hard link), which would be written too; copy it")


def _strange(entry: os.DirEntry[str], about: os.stat_result) -> str:
    if stat.S_ISLNK(about.st_mode) or getattr(entry, "is_junction", bool)():
        return "a link"
    return "" if stat.S_ISDIR(about.st_mode) or stat.S_ISREG(about.st_mode) else "a pipe or a device"


def inside(folder: Path, told: object) -> Path:
    """The plain file that a manifest, a line of metrics or a checkpoint names. StageError when it is none, lies outside
    the folder, or a link is on its way."""
    parts = PurePosixPath(told).parts if isinstance(told, str) else ()
    if not isinstance(told, str) or not parts or not is_inside(told):
        raise StageError(f"{folder}: {str(told)[:200]!r} is no path inside the run's folder")
    path = folder
    for part in parts:
        path = path / part
        if path.is_symlink() or getattr(path, "is_junction", bool)():
            raise StageError(f"{path}: is a link, which is not followed")
    if not path.is_file():
        raise StageError(f"{path}: is no file")
    return path


def is_inside(told: str) -> bool:
    """Whether a path as a manifest has it stays below the folder that it starts at."""
    parts = told.split("/")
    return not any(
        part in ("", ".", "..") or "\\" in part or "\0" in part or os.path.splitdrive(part)[0]  # Windows: `a/C:b`
        for part in parts
    )


def plain_bytes(path: Path, largest: int = LARGEST) -> bytes:
    """What a plain file holds. FileNotFoundError when it is not there, ValueError when it is none or too large."""
    about = path.lstat()
    if not stat.S_ISREG(about.st_mode):
        raise ValueError("no plain file")
    if about.st_size > largest:
        raise ValueError(f"larger than {largest:,} bytes")
    return path.read_bytes()


def bounded_json(text: bytes | str, *, infinite: bool = False) -> Any:
    """The value of a JSON text. ValueError also for NaN and Infinity (unless `infinite`), numbers beyond 64 bits, text
    that is no text (half a surrogate pair), and lists in lists deeper than anything that is written here."""
    try:
        constant = float if infinite else _no_number
        value = json.loads(text, parse_constant=constant, parse_int=_whole, parse_float=_finite)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    level, depth = [value], 0
    while level:
        if depth > DEEPEST:
            raise ValueError("nested too deeply")
        below: list[Any] = []
        for one in level:
            if isinstance(one, str):
                one.encode("utf-8", "surrogateescape")  # file names that are no UTF-8 are escaped so
            elif isinstance(one, list):
                below += one
            elif isinstance(one, dict):
                below += [*one, *one.values()]
        level, depth = below, depth + 1
    return value


def _no_number(text: str) -> Any:
    raise ValueError(f"{text} is no JSON")


def _whole(text: str) -> int:
    if len(text) > 20 or abs(int(text)) > WIDEST:
        raise ValueError("a number of more than 64 bits")
    return int(text)


def _finite(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise ValueError("a number that is too large")
    return value


def misfit(value: Any, shape: Shape, place: str = "") -> str | None:
    """The first place at which a value has not its shape; None when it fits. A bool is no number."""
    if isinstance(shape, tuple):
        found = [misfit(value, one, place) for one in shape]
        return None if None in found else found[0]
    if isinstance(shape, list):
        if not isinstance(value, list):
            return f"{place or 'it'} is no list"
        wrong = (misfit(one, shape[0], f"{place}.{at}") for at, one in enumerate(value))
        return next(filter(None, wrong), None)
    if isinstance(shape, dict):
        return _misfit_table(value, shape, place)
    if shape is None:
        return None if value is None else f"{place} is not null"
    if isinstance(value, shape) and (shape is bool or not isinstance(value, bool)):
        return None
    return f"{place or 'it'} is no {'number' if shape in NUMBER else shape.__name__}"


def _misfit_table(value: Any, shape: dict[str, Shape], place: str) -> str | None:
    if not isinstance(value, dict):
        return f"{place or 'it'} is no table"
    start = f"{place}." if place else ""
    for key, wanted in shape.items():
        name = key.removesuffix("?")
        if key == "*":
            wrong = (misfit(one, wanted, start + other) for other, one in value.items())
            first = next(filter(None, wrong), None)
        elif name in value:
            first = misfit(value[name], wanted, start + name)
        else:
            first = None if key.endswith("?") else f"{start}{name} is missing"
        if first:
            return first
    return None
