"""One process a folder: the kernel holds the lock, so that it is free again however its holder ends.

Some network disks have no such locks. There a lock file that names its holder stands in: one whose process has ended is
taken over on the same machine; one of another machine has to be deleted by hand.
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
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder while the block runs. Raises StageError, naming the holder, when another process has it."""
    path = folder / NAME
    if path.is_symlink():
        raise StageError(f"{path}: is a link, which is never written through; delete it, or choose another --out")
    lock, before = FileLock(path), _text(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise StageError(f"{folder}: {_holder(path)}") from None
    except (OSError, NotImplementedError) as error:  # the latter of older versions of filelock
        why = getattr(error, "strerror", None) or error
        raise StageError(f"{folder}: cannot be locked ({why}); choose another --out") from error
    try:
        with suppress(OSError):  # Windows lets nobody write into a locked file; the text is only a help
            # A lock file names us already, and must keep what it says. An old text may have our number: in containers
            # many a process has the same.
            if _owner(path)[0] != str(os.getpid()) or _text(path) == before:
                path.write_text(f"{os.getpid()}\n{socket.gethostname()}\n", "utf-8")
        yield
    finally:
        lock.release()


def is_locked(folder: Path) -> bool:
    """Whether a living process holds the folder."""
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


def is_ours(folder: Path) -> bool:
    """Whether the folder has a lock that a process of ours made: it names one, or is empty where none could be named.

    A link, or a file with other text, is none of ours.
    """
    path = folder / NAME
    if path.is_symlink() or not path.is_file() or path.stat().st_size > 1000:
        return False
    process, _ = _owner(path)
    return process.isdecimal() or path.stat().st_size == 0


def _holder(path: Path) -> str:
    """Who holds the lock, and what to do. One of another machine may be a lock file that nobody takes over."""
    process, machine = _owner(path)
    who = f"process {process}{machine and f' on {machine}'}" if process else "another process"
    hint = "" if machine in ("", socket.gethostname()) else f" (if it has ended on that machine, delete {path})"
    return f"{who} is running in this folder; wait for it, or use --out{hint}"


def _owner(path: Path) -> tuple[str, str]:
    """The process and the machine that a lock names; empty where it names none."""
    process, machine, *_ = [*_text(path).split("\n"), ""]
    return process, machine


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8") if path.is_file() else ""  # a pipe would block
    except (OSError, UnicodeDecodeError):
        return ""
