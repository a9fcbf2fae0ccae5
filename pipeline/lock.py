"""One process a folder: the kernel holds the lock, so that it is free again however its holder ends.

Some network disks have no such locks. There filelock takes the file itself for the lock, with its holder written in it:
one of a process that has ended is taken over on the same machine, and can be of another one only by hand.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout

from .errors import StageError

NAME = ".lock"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder while the block runs. Raises StageError, naming the holder, when another process has it."""
    lock: BaseFileLock = FileLock(folder / NAME)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        way = "wait for it, or use --out"
        if isinstance(lock, SoftFileLock):
            way += f" (this disk has no locks of the system: where it runs no more, delete {folder / NAME})"
        raise StageError(f"{folder}: {_holder(folder)} is running in this folder; {way}") from None
    except (OSError, NotImplementedError) as error:  # the latter of older versions of filelock
        why = getattr(error, "strerror", None) or error
        raise StageError(f"{folder}: cannot be locked ({why}); choose another --out") from error
    try:
        with suppress(OSError):  # Windows lets nobody write into a locked file; the text is only a help
            if not isinstance(lock, SoftFileLock):  # which has written its own, and must find that again
                (folder / NAME).write_text(f"{os.getpid()}\n{socket.gethostname()}\n", "utf-8")
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


def _holder(folder: Path) -> str:
    try:
        told = (folder / NAME).read_text("utf-8").split("\n")
    except (OSError, UnicodeDecodeError):
        told = [""]
    return f"process {' on '.join(filter(None, told[:2]))}" if told[0] else "another process"
