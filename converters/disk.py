"""Temporary files, and flushing files and folders to the disk.

Where the system supports it, temporary files have no name, so a killed process leaves nothing (Linux, O_TMPFILE).
Otherwise, and for many files at once, they are called `.<hex>.part`; leftovers of killed processes are removed a day
later when something is written to their folder.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import cache
from itertools import count
from pathlib import Path

from .errors import ConvertError

NO_FOLDERS = (errno.EINVAL, errno.ENOTSUP, errno.EACCES)  # systems that cannot sync folders, or not this one
_WAITS = (0.05, 0.15, 0.3, 0.5, 1.0)  # seconds


def failed(path: Path | str, what: str, error: Exception) -> ConvertError:
    """A system error as a ConvertError about `path`."""
    return ConvertError(f"{path}: {what} ({getattr(error, 'strerror', None) or error})")


def replace(old: Path | str, new: Path | str) -> None:
    """As os.replace; on Windows retried for two seconds while a virus scanner or viewer has the file open.

    Raises OSError.
    """
    for wait in _WAITS if os.name == "nt" else ():
        try:
            os.replace(old, new)
            return
        except PermissionError:
            time.sleep(wait)
    os.replace(old, new)


def sync_folder(folder: Path | str) -> None:
    """Flush a folder's entries to the disk, where the system supports it."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in NO_FOLDERS:
            raise failed(folder, "its new files are written but could not be flushed to the disk", error) from error


SUFFIX = ".part"
OLD = 24 * 3600  # seconds after which a temporary file is a leftover
MANY = 64  # files that are flushed together

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS)

_OPEN = os.O_RDWR | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
_BY_DESCRIPTOR = "/proc/self/fd"


class Temporary:
    """An open temporary file. `path` opens it a second time; `named`: it has a name in the folder."""

    __slots__ = ("descriptor", "named", "path")

    def __init__(self, descriptor: int, path: str, named: bool) -> None:
        self.descriptor, self.path, self.named = descriptor, path, named

    def link(self, path: str) -> None:
        """Give it the name `path`, which must be free. Raises OSError."""
        if self.named:
            os.link(self.path, path)
        else:  # a folder descriptor makes Python follow the link; it has no effect on absolute paths
            os.link(self.path, os.path.abspath(path), src_dir_fd=self.descriptor, follow_symlinks=True)

    def with_a_name(self, path: str) -> str:
        """Its temporary name, in the folder of `path`, given to it now if it has none. Raises OSError."""
        if self.named:
            return self.path
        name = temporary_name(os.path.dirname(path))
        try:
            self.link(name)
        except OSError as error:
            if error.errno in FULL:
                raise
            self._copy(name)  # no hard links, or no permission: copy the bytes
        self.close()
        self.path, self.named = name, True
        return name

    def _copy(self, name: str) -> None:
        import shutil  # slow to import

        copy = create_temporary(os.path.dirname(name), False)
        try:
            with open(self.path, "rb") as source, open(copy.descriptor, "wb", closefd=False) as target:
                shutil.copyfileobj(source, target)
            copy.sync()
            copy.close()
            os.replace(copy.path, name)
        finally:
            copy.discard()

    def sync(self) -> None:
        """Flush its bytes to the disk. Raises OSError."""
        if self.descriptor >= 0:
            os.fsync(self.descriptor)
            return
        descriptor = os.open(self.path, _OPEN)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def close(self) -> None:
        """Close the descriptor, which deletes a file without a name."""
        descriptor, self.descriptor = self.descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def discard(self) -> None:
        """Remove the temporary file; a file that was renamed stays."""
        with suppress(OSError):
            self.close()
        if self.named:
            with suppress(OSError):  # mostly because it has been renamed
                os.unlink(self.path)


def create_temporary(folder: os.PathLike[str] | str, unnamed: bool) -> Temporary:
    """A new empty file in `folder`, without a name if requested and supported. Raises OSError."""
    if unnamed and hasattr(os, "O_TMPFILE") and os.path.isdir(_BY_DESCRIPTOR):
        with suppress(OSError):  # not supported by the file system; other errors occur again below
            descriptor = os.open(folder or os.curdir, _OPEN | os.O_TMPFILE, 0o666)
            return Temporary(descriptor, f"{_BY_DESCRIPTOR}/{descriptor}", False)
    path = temporary_name(folder)
    return Temporary(os.open(path, _OPEN | os.O_CREAT | os.O_EXCL, 0o666), path, True)


def temporary_name(folder: os.PathLike[str] | str) -> str:
    """A unique path for a temporary file."""
    return os.path.join(folder, f".{next(_numbers()) % (1 << 64):016x}{SUFFIX}")


@cache
def _numbers() -> Iterator[int]:
    """Numbers from a random start, different in each process."""
    return count(int.from_bytes(os.urandom(8), "little"))


if hasattr(os, "register_at_fork"):  # a fork would continue the numbers of its parent
    os.register_at_fork(after_in_child=_numbers.cache_clear)


def remove_leftovers(folder: str) -> None:
    """Remove leftovers of killed processes from a folder."""
    with suppress(OSError), os.scandir(folder) as entries:
        left = [entry for entry in entries if entry.name.endswith(SUFFIX) and _is_ours(entry.name)]
        for entry in left:
            if entry.stat(follow_symlinks=False).st_mtime < time.time() - OLD:
                os.unlink(entry.path)


def _is_ours(name: str) -> bool:
    digits = name[1 : -len(SUFFIX)]
    return name[0] == "." and len(digits) == 16 and set(digits) <= set("0123456789abcdef")


def sync_files(staged: Mapping[str, Temporary]) -> None:
    """Flush temporary files, by their target paths, to the disk. Raises ConvertError on a system error."""
    if len(staged) > MANY and hasattr(os, "sync"):
        os.sync()  # all at once; errors are reported per file below
    for path, temporary in staged.items():
        try:
            temporary.sync()
        except OSError as error:
            raise failed(path, "cannot be written", error) from error
