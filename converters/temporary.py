"""Files that are being written and have no place yet.

Where the system can, they have no name either, and a process that is killed leaves nothing (Linux, O_TMPFILE). Where
it cannot, and for many files at once, they are called `.<hex>.part`; those that a killed process has left are taken
away when something is written to their folder a day later.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import cache
from itertools import count

from .disk import failed

SUFFIX = ".part"
OLD = 24 * 3600  # seconds after which nobody writes to a temporary file any more
MANY = 64  # files that are brought to the disk together

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS)

_OPEN = os.O_RDWR | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
_BY_DESCRIPTOR = "/proc/self/fd"


class Temporary:
    """An open file that is going to get its place. `path` opens it a second time; `named`: others see it too."""

    __slots__ = ("descriptor", "named", "path")

    def __init__(self, descriptor: int, path: str, named: bool) -> None:
        self.descriptor, self.path, self.named = descriptor, path, named

    def link(self, path: str) -> None:
        """Give it the name `path`, which must be free. Raises OSError."""
        if self.named:
            os.link(self.path, path)
        else:  # the descriptor of a folder makes Python follow the link; it is not used with whole paths
            os.link(self.path, os.path.abspath(path), src_dir_fd=self.descriptor, follow_symlinks=True)

    def with_a_name(self, path: str) -> str:
        """Its temporary name, in the folder of `path`, given to it now if it has none. Raises OSError."""
        if self.named:
            return self.path
        name = part(os.path.dirname(path))
        try:
            self.link(name)
        except OSError as error:
            if error.errno in FULL:
                raise
            self._copy(name)  # no hard links, or no right to make one: the bytes are written once more
        self.close()
        self.path, self.named = name, True
        return name

    def _copy(self, name: str) -> None:
        import shutil  # with all that it unpacks it takes its time to load

        copy = begun(os.path.dirname(name), False)
        try:
            with open(self.path, "rb") as source, open(copy.descriptor, "wb", closefd=False) as target:
                shutil.copyfileobj(source, target)
            copy.sync()
            copy.close()
            os.replace(copy.path, name)
        finally:
            copy.discard()

    def sync(self) -> None:
        """Bring its bytes to the disk. Raises OSError."""
        if self.descriptor >= 0:
            os.fsync(self.descriptor)
            return
        descriptor = os.open(self.path, _OPEN)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def close(self) -> None:
        """Let the descriptor go: without a name, that is the file's end."""
        descriptor, self.descriptor = self.descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def discard(self) -> None:
        """Nothing of it stays but what has a place by now."""
        with suppress(OSError):
            self.close()
        if self.named:
            with suppress(OSError):  # mostly because it has been renamed
                os.unlink(self.path)


def begun(folder: os.PathLike[str] | str, unnamed: bool) -> Temporary:
    """A new empty file in `folder`, without a name if that is wanted and the system can. Raises OSError."""
    if unnamed and hasattr(os, "O_TMPFILE") and os.path.isdir(_BY_DESCRIPTOR):
        with suppress(OSError):  # a file system that cannot; what else is wrong is met again below
            descriptor = os.open(folder or os.curdir, _OPEN | os.O_TMPFILE, 0o666)
            return Temporary(descriptor, f"{_BY_DESCRIPTOR}/{descriptor}", False)
    path = part(folder)
    return Temporary(os.open(path, _OPEN | os.O_CREAT | os.O_EXCL, 0o666), path, True)


def part(folder: os.PathLike[str] | str) -> str:
    """A name for a temporary file that nobody else has."""
    return os.path.join(folder, f".{next(_numbers()) % (1 << 64):016x}{SUFFIX}")


@cache
def _numbers() -> Iterator[int]:
    """Numbers from a place that no other process begins at."""
    return count(int.from_bytes(os.urandom(8), "little"))


if hasattr(os, "register_at_fork"):  # a fork would go on where its parent was, as would the next fork
    os.register_at_fork(after_in_child=_numbers.cache_clear)


def sweep(folder: str) -> None:
    """Take away what killed processes have left in a folder."""
    with suppress(OSError), os.scandir(folder) as entries:
        left = [entry for entry in entries if entry.name.endswith(SUFFIX) and _is_ours(entry.name)]
        for entry in left:
            if entry.stat(follow_symlinks=False).st_mtime < time.time() - OLD:
                os.unlink(entry.path)


def _is_ours(name: str) -> bool:
    digits = name[1 : -len(SUFFIX)]
    return name[0] == "." and len(digits) == 16 and set(digits) <= set("0123456789abcdef")


def sync_files(staged: Mapping[str, Temporary]) -> None:
    """Bring files, by the places they are for, to the disk. Raises ConvertError if the disk will not have one."""
    if len(staged) > MANY and hasattr(os, "sync"):
        os.sync()  # in one go; what went wrong is told for each file below
    for path, temporary in staged.items():
        try:
            temporary.sync()
        except OSError as error:
            raise failed(path, "cannot be written", error) from error
