"""Bytes that stay in a file until they are wanted, and the opening of files that others name."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from .errors import ConvertError

CHUNK = 1 << 20


class Origin(NamedTuple):
    """One state of one file: a path and what the system said of it when its header was read."""

    path: Path
    device: int
    inode: int
    size: int
    changed: int

    @contextmanager
    def opened(self) -> Iterator[int]:
        """A descriptor of the file; ConvertError if it is not the one that was looked at before."""
        with opened(self.path) as (descriptor, origin):
            if origin != self:
                raise changed(self.path)
            yield descriptor


class FileRange:
    """`length` bytes from `offset` on. No descriptor is open, so a hundred thousand of them are cheap.

    `held` are the same bytes in memory, where somebody has them at hand already; they may be let go at any time.
    """

    __slots__ = ("held", "length", "offset", "origin")

    def __init__(self, origin: Origin, offset: int, length: int, held: bytes | memoryview | None = None) -> None:
        self.origin = origin
        self.offset = offset
        self.length = length
        self.held = held

    def __len__(self) -> int:
        return self.length

    def read(self) -> bytes | memoryview:
        """All bytes at once; ConvertError if the file has changed or grown shorter."""
        if self.held is not None:
            return self.held
        with self.origin.opened() as descriptor:
            return read_exactly(descriptor, self.offset, self.length, self.origin.path)


class Made:
    """`length` bytes that are made anew at each reading, so a file of any size is written piece by piece."""

    __slots__ = ("_make", "length")

    def __init__(self, length: int, make: Callable[[], bytes | memoryview]) -> None:
        self.length = length
        self._make = make

    def __len__(self) -> int:
        return self.length

    def read(self) -> bytes | memoryview:
        """All bytes at once; ValueError if they are not as many as was said."""
        data = self._make()
        if len(data) != self.length:
            raise ValueError(f"{len(data)} bytes were made, {self.length} were said")
        return data


def changed(path: Path) -> ConvertError:
    """The one wording for a file that others write to at the same time."""
    return ConvertError(f"{path}: changed while it was being read; start again when it is at rest")


@contextmanager
def opened(path: Path) -> Iterator[tuple[int, Origin]]:
    """A descriptor of a regular file and its Origin.

    ConvertError, at once, for a pipe, folder or device; at the end if the file has changed meanwhile.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except (OSError, ValueError) as error:
        raise ConvertError(f"{path}: cannot be opened ({getattr(error, 'strerror', None) or error})") from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise ConvertError(f"{path}: not an ordinary file")
        yield descriptor, Origin(path, status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
        after = os.fstat(descriptor)
        if (after.st_size, after.st_mtime_ns) != (status.st_size, status.st_mtime_ns):
            raise changed(path)
    finally:
        os.close(descriptor)


def read_exactly(descriptor: int, offset: int, length: int, path: Path) -> bytes:
    """`length` bytes from `offset` on, or ConvertError if the file ends before or cannot be read."""
    parts: list[bytes] = []
    while length:
        try:
            part = pread(descriptor, min(length, 1 << 30), offset)
        except (OSError, OverflowError) as error:  # also a place before the start or beyond what the system can count
            why = getattr(error, "strerror", None) or error
            raise ConvertError(f"{path}: cannot be read at byte {offset} ({why})") from error
        if not part:
            raise ConvertError(f"{path}: grew shorter while it was being read")
        parts.append(part)
        offset += len(part)
        length -= len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def pread(descriptor: int, length: int, offset: int) -> bytes:
    """os.pread, also where the system (Windows) has none."""
    if hasattr(os, "pread"):
        return os.pread(descriptor, length, offset)
    os.lseek(descriptor, offset, os.SEEK_SET)
    return os.read(descriptor, length)
