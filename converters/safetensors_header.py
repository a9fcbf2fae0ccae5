"""The header of a safetensors file, believed only once it is checked.

Written from the format's own description; the `safetensors` package is not needed here.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .errors import ConvertError

MOST_DIMENSIONS = 64
MOST_BYTES = 1 << 62

Entry = tuple[str, tuple[int, ...], int, int]


def parse(header: bytes, path: Path) -> tuple[dict[str, Entry], dict[str, str]]:
    """Tensors by name in the order of their bytes (dtype, shape, first and last byte), and metadata."""
    try:
        loaded = json.loads(header.decode("utf-8"), object_pairs_hook=_once, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise ConvertError(f"{path}: not a safetensors file (header: {short(error)})") from error
    if not isinstance(loaded, dict):
        raise ConvertError(f"{path}: not a safetensors file (its header is no object)")
    metadata = loaded.pop("__metadata__", None)
    metadata = {} if metadata is None else metadata
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ConvertError(f"{path}: its __metadata__ must map text to text")
    try:
        "".join((*loaded, *metadata, *metadata.values())).encode()
    except UnicodeEncodeError as error:
        raise ConvertError(f"{path}: a name in its header is not valid text") from error
    entries = _entries(loaded, path)
    begins, ends = ([entry[place] for entry in entries.values()] for place in (2, 3))
    if begins != sorted(begins) or ends != sorted(ends):
        entries = dict(sorted(entries.items(), key=lambda item: item[1][2:]))
    return entries, metadata


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise ValueError(f"{twice[:60]!r} is given twice")
    return found


def _no_constant(word: str) -> None:
    raise ValueError(f"{word} is no JSON")


def _entries(loaded: dict[str, Any], path: Path) -> dict[str, Entry]:
    entries: dict[str, Entry] = {}
    for name, value in loaded.items():
        try:
            dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
            begin, end = offsets
            sound = len(value) == 3 and type(dtype) is str and type(shape) is list and type(offsets) is list
            sound = sound and _is_size(begin) and _is_size(end) and begin <= end and len(shape) <= MOST_DIMENSIONS
            if sound and all(map(_is_size, shape)):
                entries[name] = dtype, tuple(shape), begin, end
                continue
        except (TypeError, KeyError, ValueError):
            pass
        raise ConvertError(f"{path}: {short(name)}: not a description of a tensor (dtype, shape, data_offsets)")
    return entries


def _is_size(value: object) -> bool:
    return type(value) is int and 0 <= value < MOST_BYTES


def check_ranges(entries: Mapping[str, Entry], size: int, path: Path) -> None:
    """Raises ConvertError unless the ranges, sorted, cover the data from its first to its last byte."""
    at = 0
    for name, (_, _, begin, end) in entries.items():
        if begin != at:
            what = "overlaps the tensor before it" if begin < at else f"leaves a hole of {begin - at} bytes before it"
            raise ConvertError(f"{path}: {short(name)} {what}")
        at = end
    if at != size:
        raise ConvertError(f"{path}: its tensors take {at} bytes but {size} follow the header; a damaged download?")


@contextmanager
def no_collector(wanted: bool) -> Iterator[None]:
    """Pause the garbage collector, which would look at a hundred thousand new values time and again for nothing."""
    paused = wanted and gc.isenabled()
    if paused:
        gc.disable()
    try:
        yield
    finally:
        if paused:
            gc.enable()


def short(value: object) -> str:
    """A value from a file as it may stand in a message."""
    text = str(value) if isinstance(value, Exception) else repr(value)
    return text if len(text) <= 120 else text[:117] + "..."
