"""One process per run folder: a file lock of the operating system, released however its process ends.

Some network disks have no such locks. There the lock is the existence of the file: if its process has ended,
another process on the same machine takes it over; one of another machine must be deleted by hand.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from .errors import StageError

NAME = ".lock"


@contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Lock the folder while the block runs. StageError naming the process that has locked it already."""
    path = folder / NAME
    if path.is_symlink():
        raise StageError(f"{path}: is a link; delete it, or choose another --out")
    lock, before = FileLock(path), _text(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise StageError(f"{folder}: {_holder(path)}") from None
    except (OSError, NotImplementedError) as error:  # the latter from older versions of filelock
        why = getattr(error, "strerror", None) or error
        raise StageError(f"{folder}: cannot be locked ({why}); choose another --out") from error
    try:
        with suppress(OSError):  # Windows does not allow writing to a locked file; the text is optional
            # Where the file itself is the lock, it names us already and must not change. Otherwise an old text may have
            # our process id: ids repeat in containers.
            if _owner(path)[0] != str(os.getpid()) or _text(path) == before:
                path.write_text(f"{os.getpid()}\n{socket.gethostname()}\n", "utf-8")
        yield
    finally:
        lock.release()


def is_locked(folder: Path) -> bool:
    """Whether a running process has locked the folder."""
    if not (folder / NAME).exists():
        return False
    lock = FileLock(folder / NAME)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    except (OSError, NotImplementedError):
        return False
    lock.release()
    return False


def has_our_lock(folder: Path) -> bool:
    """Whether the folder has a lock file written by Pivotune: it names a process or is empty.

    Links and files with other text are the user's.
    """
    path = folder / NAME
    if path.is_symlink() or not path.is_file() or path.stat().st_size > 1000:
        return False
    process, _ = _owner(path)
    return process.isdecimal() or path.stat().st_size == 0


def _holder(path: Path) -> str:
    """Which process has the lock, and what to do."""
    process, machine = _owner(path)
    who = f"process {process}{machine and f' on {machine}'}" if process else "another process"
    hint = "" if machine in ("", socket.gethostname()) else f" (if it has ended on that machine, delete {path})"
    return f"{who} is running in this folder; wait for it, or use --out{hint}"


def _owner(path: Path) -> tuple[str, str]:
    """The process id and the host name in a lock file; empty if it has none."""
    process, machine, *_ = [*_text(path).split("\n"), ""]
    return process, machine


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8") if path.is_file() else ""  # a pipe would block
    except (OSError, UnicodeDecodeError):
        return ""
