"""Whether a run is still at work: it holds a lock on its metrics, which the system drops when its process ends."""

from __future__ import annotations

from pathlib import Path
from typing import IO, Any

try:
    import fcntl
except ImportError:  # a system without it: nobody can tell then
    fcntl = None  # type: ignore[assignment]


def hold(file: IO[Any]) -> None:
    """Lock an open file until it is closed or the process ends, however it ends. Does nothing where none can be had."""
    if fcntl is not None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:  # a network drive without locks
            return


def at_work(folder: Path) -> bool | None:
    """Whether the run of this folder is still writing its metrics; None where that cannot be told."""
    if fcntl is None:
        return None
    try:
        with (folder / "metrics.jsonl").open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return False
    except BlockingIOError:
        return True
    except OSError:
        return None
