"""What the machine says when it has had enough (disk, memory, rights, files that are gone), as one line for people."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from ..errors import StageError
from ..machine import system_words
from ..models.full_memory import out_of_memory
from ..processes import lost

LESS = "a smaller batch_size with gradient_accumulation, gradient_checkpointing = true, a smaller resolution"


def in_words(error: BaseException, way_out: str = "") -> str | None:
    """One line about an error of the machine and the way out; None for any other error, which is a fault of ours.

    `way_out` says what needs less memory at this place.
    """
    memory = out_of_memory(error)
    if memory is not None:
        return f"{memory.partition(';')[0]}; try {way_out}" if way_out else memory
    if isinstance(error, OSError):
        return system_words(error)
    if isinstance(error, SafetensorError):
        full = "the disk is full; make room: " if "No space left" in str(error) else ""
        return full + str(error).splitlines()[0]
    return None


@contextmanager
def told(way_out: str = "") -> Iterator[None]:
    """Turn an error of the machine, or of another process that is gone, into a StageError; all others pass."""
    try:
        yield
    except (OSError, RuntimeError, MemoryError, SafetensorError) as error:
        gone = lost(error)
        if gone is not None:
            raise gone from error
        text = in_words(error, way_out)
        if text is None:
            raise
        raise StageError(text) from error


def lost_folder(folder: Path) -> str | None:
    """What is said when the run's own folder has been taken away under it, and perhaps been made anew since."""
    if (folder / "manifest.json").exists():
        return None
    return f"{folder}: the run's folder was deleted or moved while the run was at work, with what it held"
