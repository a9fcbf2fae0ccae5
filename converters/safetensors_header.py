"""Reading and checking the header of a safetensors file.

Written from the format's own description; the `safetensors` package is not needed here. A header may have a hundred
thousand tensors, so each check looks at one column of all of them; the wrong one is only searched for on failure.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

from .errors import ConvertError, count_of
from .tensor import DTYPE_BITS

MOST_DIMENSIONS = 64
MOST_BYTES = 1 << 62
SHORT, MOST_KNOWN = 2048, 64  # bytes of a header that is remembered, and how many of them are
FEW = 16  # tensors that are checked one by one

Pairs = Callable[[list[tuple[str, Any]]], dict[str, Any]]


class Header(NamedTuple):
    """Columns, a value a tensor, in the order of their bytes: names, dtypes, shapes, first and last byte."""

    names: list[str]
    dtypes: list[str]
    shapes: list[tuple[int, ...]]
    begins: list[int]
    ends: list[int]
    metadata: dict[str, str]


_KNOWN: dict[tuple[bytes, int], Header] = {}  # short headers: those of one program's embeddings are often identical


def parse(header: bytes, size: int, path: Path | str) -> Header:
    """A header over `size` bytes of data. Raises ConvertError for anything that the format forbids."""
    known = _KNOWN.get((header, size))
    if known is None:
        known = _parsed(header, size, path)
        if len(header) > SHORT:
            return known
        if len(_KNOWN) >= MOST_KNOWN:
            _KNOWN.clear()
        _KNOWN[header, size] = known
    return Header(*known[:-1], dict(known.metadata))


def _parsed(header: bytes, size: int, path: Path | str) -> Header:
    text, loaded = _loaded(header, path)
    stated = "__metadata__" in loaded
    metadata = loaded.pop("__metadata__", None)
    metadata = {} if metadata is None else metadata
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ConvertError(f"{path}: its __metadata__ must map text to text")
    texts = "".join((*loaded, *metadata, *metadata.values()))
    try:
        texts.isascii() or texts.encode()
    except UnicodeEncodeError as error:
        raise ConvertError(f"{path}: a name in its header is not valid text") from error
    # Outside of texts, a colon follows each name and occurs nowhere else: a name given twice, of which json keeps the
    # last and says nothing, leaves one too many. Where a colon may be written otherwise, all pairs are looked at.
    colons = 4 * len(loaded) + stated + len(metadata) + texts.count(":")
    if "\\u" in text or text.count(":") != colons:
        _loaded(header, path, _once)
    found = _in_order(_columns(loaded, metadata, path))
    _check_ranges(found, size, path)
    return found


def _loaded(header: bytes, path: Path | str, pairs: Pairs | None = None) -> tuple[str, dict[str, Any]]:
    try:
        text = header.decode("utf-8")
        decoder = json.JSONDecoder(object_pairs_hook=pairs, parse_constant=_no_constant) if pairs else _DECODER
        loaded = decoder.decode(text)
    except (ValueError, RecursionError) as error:
        raise ConvertError(f"{path}: not a safetensors file (header: {short(error)})") from error
    if not isinstance(loaded, dict):
        raise ConvertError(f"{path}: not a safetensors file (its header is not a JSON object)")
    return text, loaded


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise ValueError(f"{twice[:60]!r} occurs twice")
    return found


def _no_constant(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


_DECODER = json.JSONDecoder(
    parse_constant=_no_constant
)  # made once: that takes longer than reading an embedding's header


def _columns(loaded: dict[str, Any], metadata: dict[str, str], path: Path | str) -> Header:
    entries = list(loaded.values())
    try:
        dtypes, shapes, offsets = [[entry[key] for entry in entries] for key in ("dtype", "shape", "data_offsets")]
        sound = all(map(_is_tensor, entries)) if len(entries) <= FEW else _are_tensors(entries, dtypes, shapes, offsets)
    except (TypeError, KeyError):
        sound = False
    if not sound:
        culprit = next(name for name, entry in loaded.items() if not _is_tensor(entry))
        raise ConvertError(f"{path}: {short(culprit)}: not a description of a tensor (dtype, shape, data_offsets)")
    begins, ends = ([offset[place] for offset in offsets] for place in (0, 1))
    found = Header(list(loaded), dtypes, [*map(tuple, shapes)], begins, ends, metadata)
    _check_sizes(found, path)
    return found


def _are_tensors(entries: list[Any], dtypes: list[Any], shapes: list[Any], offsets: list[Any]) -> bool:
    """Whether all are as `_is_tensor` wants each. Raises TypeError if not, at times."""
    numbers = [*chain.from_iterable(shapes), *chain.from_iterable(offsets)]
    sound = {*map(type, shapes), *map(type, offsets)} <= {list} and {*map(type, dtypes)} <= {str}
    sound = sound and {*map(len, entries)} <= {3} and {*map(len, offsets)} <= {2} and {*map(type, numbers)} <= {int}
    sound = sound and min(numbers, default=0) >= 0 and max(numbers, default=0) < MOST_BYTES
    return sound and max(map(len, shapes), default=0) <= MOST_DIMENSIONS


def _is_tensor(value: Any) -> bool:
    try:
        dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
        kinds = type(dtype) is str and type(shape) is list and type(offsets) is list
        return kinds and len(value) == 3 and len(offsets) == 2 and len(shape) <= MOST_DIMENSIONS and all(
            type(number) is int and 0 <= number < MOST_BYTES for number in (*shape, *offsets)
        )  # fmt: skip
    except (TypeError, KeyError):
        return False


def _check_sizes(found: Header, path: Path | str) -> None:
    lengths = [end - begin for begin, end in zip(found.begins, found.ends, strict=True)]
    try:
        sizes = [(DTYPE_BITS[d] * prod(shape) + 7) // 8 for d, shape in zip(found.dtypes, found.shapes, strict=True)]
    except KeyError:
        sizes = []
    if sizes == lengths:
        return
    for name, dtype, shape, length in zip(found.names, found.dtypes, found.shapes, lengths, strict=True):
        if dtype not in DTYPE_BITS:
            raise ConvertError(f"{path}: {short(name)}: unknown dtype {short(dtype)}")
        if length < 0:
            raise ConvertError(f"{path}: {short(name)}: not a description of a tensor (its end is before its start)")
        if length != (DTYPE_BITS[dtype] * prod(shape) + 7) // 8:
            what = f"a length of {count_of(length, 'byte')} does not fit {short(shape)} {short(dtype)}"
            raise ConvertError(f"{path}: {short(name)}: {what}")


def _in_order(found: Header) -> Header:
    """The columns in the order of their data, which nearly all files have already."""
    if found.begins[1:] == found.ends[:-1]:
        return found
    places = [*zip(found.begins, found.ends, strict=True)]
    order = sorted(range(len(places)), key=places.__getitem__)
    names, dtypes = ([column[at] for at in order] for column in (found.names, found.dtypes))
    begins, ends = ([column[at] for at in order] for column in (found.begins, found.ends))
    return Header(names, dtypes, [found.shapes[at] for at in order], begins, ends, found.metadata)


def _check_ranges(found: Header, size: int, path: Path | str) -> None:
    """Raises ConvertError unless the ranges, sorted, cover the data from its first to its last byte."""
    at = found.ends[-1] if found.ends else 0
    if found.begins[1:] != found.ends[:-1] or found.begins[:1] not in ([], [0]):
        at = 0
        for name, begin, end in zip(found.names, found.begins, found.ends, strict=True):
            if begin != at:
                what = f"leaves a hole of {count_of(begin - at, 'byte')}" if begin > at else "overlaps the tensor"
                raise ConvertError(f"{path}: {short(name)} {what} before it")
            at = end
    if at != size:
        raise ConvertError(
            f"{path}: its tensors take {count_of(at, 'byte')}, but {size:,} follow the header: truncated or corrupt; "
            "download again"
        )


@contextmanager
def no_collector(wanted: bool) -> Iterator[None]:
    """Pause the garbage collector, which would scan a hundred thousand new values repeatedly."""
    paused = wanted and gc.isenabled()
    if paused:
        gc.disable()
    try:
        yield
    finally:
        if paused:
            gc.enable()


def short(value: object) -> str:
    """A value from a file, shortened for a message."""
    text = str(value) if isinstance(value, Exception) else repr(value)
    return text if len(text) <= 120 else text[:117] + "..."
