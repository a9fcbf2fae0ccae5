"""safetensors files: headers are checked before they are trusted, and the same contents always give the same bytes.

Written from the format's own description; the `safetensors` package is not needed here.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Container, Iterable, Mapping
from itertools import repeat
from pathlib import Path
from typing import BinaryIO

from .atomic import Batch, batch
from .errors import ConvertError, count_of
from .file_range import FileRange, Origin, opened, read_exactly
from .safetensors_bytes import Filled, fill, in_file_order
from .safetensors_header import no_collector, parse, short
from .tensor import RawTensor

MAX_HEADER = 100_000_000  # what the format's own reader allows
SMALL = 1 << 20  # the tensors of a file up to this size are read with the header

Header = tuple[dict[str, RawTensor], dict[str, str]]


def read(path: Path | str, *, cached: int = SMALL) -> Header:
    """Tensors by name, in the order of their bytes, and the metadata.

    The data of a file with more than `cached` bytes stays there until it is read. Raises ConvertError for
    anything that the format forbids: a length that lies, ranges that overlap, leave holes or do not fit dtype and
    shape, a name given twice, metadata that is not text.
    """
    path = Path(path)
    with opened(path) as (descriptor, origin):
        return read_opened(descriptor, origin, cached=cached)


def read_opened(descriptor: int, origin: Origin, start: bytes = b"", *, cached: int = SMALL) -> Header:
    """As `read`, of an open file; `start` are its first bytes, if they were read already."""
    path = origin.path
    if origin.size < 8:
        raise ConvertError(f"{path}: not a safetensors file ({count_of(origin.size, 'byte')})")
    length = int.from_bytes(start[:8] or read_exactly(descriptor, 0, 8, path), "little")
    if length > min(MAX_HEADER, origin.size - 8):
        raise ConvertError(
            f"{path}: not a safetensors file, or a truncated one (its header would be {count_of(length, 'byte')} long)"
        )
    if length <= SMALL:
        return _tensors(descriptor, origin, start, length, cached)
    with no_collector(True):
        return _tensors(descriptor, origin, start, length, cached)


def _tensors(descriptor: int, origin: Origin, start: bytes, length: int, cached: int) -> Header:
    path, first = origin.path, 8 + length
    header = start[8:first] if len(start) >= first else read_exactly(descriptor, 8, length, path)
    found = parse(header, origin.size - first, path)
    pieces: Iterable[memoryview | None] = repeat(None)
    if origin.size - first <= cached:
        whole = len(start) == origin.size
        data = (
            memoryview(start)[first:]
            if whole
            else memoryview(read_exactly(descriptor, first, origin.size - first, path))
        )
        pieces = [data[begin:end] for begin, end in zip(found.begins, found.ends, strict=True)]
    lengths = [end - begin for begin, end in zip(found.begins, found.ends, strict=True)]
    places = map(FileRange, repeat(origin), [first + begin for begin in found.begins], lengths, pieces)
    tensors = map(RawTensor.of_header, found.dtypes, found.shapes, places)
    return dict(zip(found.names, tensors, strict=True)), found.metadata


def write(
    path: Path | str, tensors: Mapping[str, RawTensor], metadata: Mapping[str, str], *, overwrite: bool = False
) -> None:
    """Write one file, atomically; the same tensors and metadata give the same bytes.

    Hashes of the data that the metadata names (`safetensors_bytes.HASHES`) are recomputed. Raises ConvertError if
    the file exists or its data, read back, differs.
    """
    copied = {name for name, tensor in tensors.items() if isinstance(tensor.stored, FileRange)}
    with batch(overwrite=overwrite) as files:
        add(files, Path(path), tensors, metadata, copied=copied)


def add(
    files: Batch,
    path: Path,
    tensors: Mapping[str, RawTensor],
    metadata: Mapping[str, str],
    *,
    check: Callable[[dict[str, RawTensor], dict[str, str]], None] | None = None,
    copied: Container[str] = (),
) -> None:
    """As `write`, for one file of a batch; `check` is given the tensors and metadata read from the disk and may raise.

    What is on the disk is compared byte for byte with what was to be written, but for the tensors `copied` as they
    stand in another file (a LoRA's own): of these their place and size are compared, for a short read or write fails
    by itself.
    """
    _check_text(path, tensors, metadata)
    ordered = in_file_order(tensors)
    written = Filled(b"")

    def write_all(file: BinaryIO) -> None:
        nonlocal written
        written = fill(file, ordered, metadata, copied, path)

    def verify(temporary: str) -> None:
        if len(written.head) - 8 > MAX_HEADER:
            raise ConvertError(f"{path}: its names and metadata are larger than the {MAX_HEADER:,} bytes of a header")
        meant = written.whole or written.head
        size = len(written.head) + sum([len(tensor.stored) for tensor in ordered.values()])
        with opened(temporary) as (descriptor, origin):
            found = read_exactly(descriptor, 0, min(len(meant), origin.size), temporary)
            if origin.size != size or found != meant:
                raise ConvertError(f"{path}: what was written is not what is on the disk")
            if check is not None:
                again = (
                    read_opened(descriptor, origin, found)
                    if written.says is None
                    else _header_as_written(found, written, ordered, path)
                )
                check(*again)

    files.add(path, write_all, verify)


def _header_as_written(found: bytes, written: Filled, tensors: dict[str, RawTensor], path: Path) -> Header:
    """As `read_opened`, of bytes that are those that were written: the tensors meant, if the header says so too."""
    first = len(written.head)
    says = json.loads(found[8:first])
    if says != written.says or int.from_bytes(found[:8], "little") != first - 8:
        raise ConvertError(f"{path}: its header would not be read as it was meant")
    return {name: tensors[name] for name in says if name != "__metadata__"}, says.get("__metadata__", {})


def _check_text(path: Path, tensors: Mapping[str, RawTensor], metadata: Mapping[str, str]) -> None:
    if "__metadata__" in tensors:
        raise ConvertError(f"{path}: no tensor may be called __metadata__ in a safetensors file")
    for text in (*tensors, *metadata, *metadata.values()):
        if not isinstance(text, str):
            raise ConvertError(f"{path}: names and metadata must be text, not {type(text).__name__}")
        if not text.isascii():
            try:
                text.encode()
            except UnicodeEncodeError as error:
                raise ConvertError(f"{path}: {short(text)} is not valid text") from error
