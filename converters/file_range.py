"""Bytes that stay in a file until they are read, and opening files safely."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from .errors import ConvertError

CHUNK = 1 << 20
_READ = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)


class Origin(NamedTuple):
    """One state of one file: its path and its stat values when the header was read."""

    path: Path | str
    device: int
    inode: int
    size: int
    changed: int

    def opened(self) -> Reopened:
        """A descriptor of the file; ConvertError if the file was replaced or changed since."""
        return Reopened(self)


class FileRange:
    """`length` bytes from `offset` on. No descriptor stays open, so a hundred thousand ranges are cheap.

    `cached` are the same bytes in memory, if they were read already; they may be dropped at any time.
    """

    __slots__ = ("cached", "length", "offset", "origin")

    def __init__(self, origin: Origin, offset: int, length: int, cached: bytes | memoryview | None = None) -> None:
        self.origin = origin
        self.offset = offset
        self.length = length
        self.cached = cached

    def __len__(self) -> int:
        return self.length

    def begin(self) -> int:
        """Offset of the first byte: the sort key of ranges of one file."""
        return self.offset

    def read(self) -> bytes | memoryview:
        """All bytes at once; ConvertError if the file has changed or was truncated."""
        if self.cached is not None:
            return self.cached
        with self.origin.opened() as descriptor:
            return read_exactly(descriptor, self.offset, self.length, self.origin.path)


class LazyBytes:
    """`length` bytes that are computed on each read, so a file of any size is written piece by piece."""

    __slots__ = ("_make", "length")

    def __init__(self, length: int, make: Callable[[], bytes | memoryview]) -> None:
        self.length = length
        self._make = make

    def __len__(self) -> int:
        return self.length

    def read(self) -> bytes | memoryview:
        """All bytes at once; ValueError if there are not `length` of them."""
        data = self._make()
        if len(data) != self.length:
            raise ValueError(f"{len(data)} bytes instead of {self.length}")
        return data


def changed(path: Path | str) -> ConvertError:
    """The error for a file that another process writes to at the same time."""
    return ConvertError(f"{path}: changed while it was being read; run the command again when nothing writes to it")


class _Open:
    """An open regular file. A class takes half the time of a generator, which matters for ten thousand files."""

    __slots__ = ("_descriptor", "_origin", "_path")
    _origin: Origin
    _path: Path | str

    def _open(self) -> os.stat_result:
        path = self._path
        try:
            descriptor = self._descriptor = os.open(path, _READ)
        except (OSError, ValueError) as error:
            raise ConvertError(f"{path}: cannot be opened ({getattr(error, 'strerror', None) or error})") from error
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise ConvertError(f"{path}: not a regular file")
        except BaseException:
            os.close(descriptor)
            raise
        return status

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                after = os.fstat(self._descriptor)
                if after.st_size != self._origin.size or after.st_mtime_ns != self._origin.changed:
                    raise changed(self._path)
        finally:
            os.close(self._descriptor)


class opened(_Open):
    """A descriptor of a regular file and its Origin.

    ConvertError, at once, for a pipe, folder or device; at the end if the file has changed meanwhile.
    """

    __slots__ = ()

    def __init__(self, path: Path | str) -> None:
        self._path = path

    def __enter__(self) -> tuple[int, Origin]:
        """Descriptor and origin."""
        status = self._open()
        self._origin = Origin(self._path, status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
        return self._descriptor, self._origin


class Reopened(_Open):
    """See Origin.opened."""

    __slots__ = ()

    def __init__(self, origin: Origin) -> None:
        self._path, self._origin = origin.path, origin

    def __enter__(self) -> int:
        """The descriptor."""
        status = self._open()
        _, *known = self._origin
        if known != [status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns]:
            os.close(self._descriptor)
            raise changed(self._path)
        return self._descriptor


def read_exactly(descriptor: int, offset: int, length: int, path: Path | str) -> bytes:
    """`length` bytes from `offset` on, or ConvertError if the file is shorter or cannot be read."""
    parts: list[bytes] = []
    while length:
        try:
            part = pread(descriptor, min(length, 1 << 30), offset)
        except (OSError, OverflowError) as error:  # OverflowError: an offset the system cannot represent
            why = getattr(error, "strerror", None) or error
            raise ConvertError(f"{path}: cannot be read at byte {offset} ({why})") from error
        if not part:
            raise ConvertError(f"{path}: was truncated while it was being read")
        if len(part) == length and not parts:
            return part
        parts.append(part)
        offset += len(part)
        length -= len(part)
    return b"".join(parts)


def _seek_and_read(descriptor: int, length: int, offset: int) -> bytes:
    os.lseek(descriptor, offset, os.SEEK_SET)
    return os.read(descriptor, length)


pread = getattr(os, "pread", _seek_and_read)  # Windows has none
