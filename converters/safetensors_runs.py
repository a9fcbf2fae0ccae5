"""The data of a safetensors file as it is copied: in long runs out of other files, read back where that is asked."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO, NamedTuple

from .copying import SMALLEST, copied
from .errors import ConvertError
from .file_range import CHUNK, FileRange, Made, read_exactly
from .tensor import RawTensor

Stored = bytes | memoryview | FileRange | Made


class Run(NamedTuple):
    """Data of one tensor or several: the name of the first, the bytes, and whether they are copied unseen."""

    name: str
    stored: Stored
    unseen: bool


def runs(tensors: Mapping[str, RawTensor], unseen: Container[str] = ()) -> Iterator[Run]:
    """The data in order; neighbours in a file are one run. Those copied `unseen` make no run with others."""
    run: FileRange | None = None
    first, kind = "", False
    for name, tensor in tensors.items():
        stored, own = tensor.stored, name in unseen
        if type(stored) is FileRange and stored.held is None:
            if run and run.origin is stored.origin and run.offset + run.length == stored.offset and kind == own:
                run.length += stored.length
                continue
            if run:
                yield Run(first, run, kind)
            run, first, kind = FileRange(stored.origin, stored.offset, stored.length), name, own
            continue
        if run:
            yield Run(first, run, kind)
            run = None
        yield Run(name, stored, own)
    if run:
        yield Run(first, run, kind)


def pieces(stored: Stored) -> Iterator[bytes | memoryview]:
    """The bytes, those of a file in pieces of CHUNK."""
    if isinstance(stored, Made):
        yield stored.read()
    elif not isinstance(stored, FileRange):
        yield stored
    elif stored.held is not None or stored.length <= CHUNK:
        yield stored.read()
    else:
        with stored.origin.opened() as descriptor:
            for at in range(0, stored.length, CHUNK):
                yield read_exactly(descriptor, stored.offset + at, min(CHUNK, stored.length - at), stored.origin.path)


def copy(file: BinaryIO, part: FileRange) -> None:
    """Write what nobody has to look at: by the system's own copying, and the rest, if it leaves one, by us."""
    done = 0
    if part.length >= SMALLEST:
        with part.origin.opened() as descriptor:
            done = copied(file, descriptor, part.offset, part.length)
    if done < part.length:
        for piece in pieces(FileRange(part.origin, part.offset + done, part.length - done)):
            file.write(piece)


def in_memory(tensors: Mapping[str, RawTensor], most: int) -> list[bytes | memoryview] | None:
    """The data of each tensor, where all of it, and no more than `most` bytes, is in memory already."""
    found: list[bytes | memoryview] = []
    for tensor in tensors.values():
        stored = tensor.stored
        data = stored.held if type(stored) is FileRange else None if type(stored) is Made else stored
        if data is None:
            return None
        found.append(data)  # type: ignore[arg-type]
        most -= len(data)
    return found if most >= 0 else None


class ReadBack:
    """Writes to a file in large parts, and compares each with what the file gives back while it is still at hand."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self._file, self._path = file, path
        self._waiting: list[tuple[str, bytes | memoryview]] = []
        self._size = 0

    def write(self, name: str, data: bytes | memoryview) -> None:
        """Bytes of the tensor `name`. Raises ConvertError if the file gives others back, for these or earlier ones."""
        self._waiting.append((name, data))
        self._size += len(data)
        if self._size >= CHUNK:
            self.flush()

    def flush(self) -> None:
        """Write what waits. Raises ConvertError as `write` does."""
        if not self._waiting:
            return
        at = self._file.tell()
        if self._size < 2 * CHUNK:
            self._file.write(b"".join([data for _, data in self._waiting]))
        else:
            for _, data in self._waiting:
                self._file.write(data)
        self._file.flush()
        descriptor = self._file.fileno()
        for name, data in self._waiting:
            for begin in range(0, len(data), CHUNK):
                part = bytes(data[begin : begin + CHUNK])
                if read_exactly(descriptor, at + begin, len(part), self._path) != part:
                    raise ConvertError(f"{self._path}: {name[:80]!r} on the disk differs from what was written")
            at += len(data)
        self._waiting.clear()
        self._size = 0
