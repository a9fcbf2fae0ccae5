"""One process a folder: the kernel holds the lock, so that it is free again however its holder ends."""

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
    lock = FileLock(folder / NAME)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise StageError(f"{folder}: {_holder(folder)} is running in this folder; wait for it, or use --out") from None
    except OSError as error:
        raise StageError(f"{folder}: cannot be locked ({error.strerror or error}); choose another --out") from error
    try:
        with suppress(OSError):  # Windows lets nobody write into a locked file; the text is only a help
            (folder / NAME).write_text(f"{os.getpid()} on {socket.gethostname()}\n", "utf-8")
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
    except OSError:
        return False
    lock.release()
    return False


def _holder(folder: Path) -> str:
    try:
        text = (folder / NAME).read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError):
        text = ""
    return f"process {text}" if text else "another process"
