"""Keeps the report of a run up to date while the run goes."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from ..lock import is_locked
from .folder import read_manifest
from .page import write_report

STAMPED = ("manifest.json", "metrics.jsonl")


def follow(folder: Path, every: int, show: Callable[[str], None], sleep: Callable[[float], None] = time.sleep) -> Path:
    """Rewrite `folder`/report.html every `every` seconds in which something is new, until the run is over.

    An open page loads itself again as often; the last one, of a run that has finished, failed, was stopped or killed,
    does not. Ctrl-C ends the following, not the run. Raises StageError for a folder that holds no run.
    """
    seen: list[tuple[int, int]] = []
    try:
        while True:
            over, now = not _goes_on(folder), _stamps(folder)
            if over or now != seen:
                path, seen = write_report(folder, refresh=None if over else every), now
                show(f"{path} " + ("is complete" if over else "written; the run goes on"))
            if over:
                return path
            sleep(every)
    except KeyboardInterrupt:
        return write_report(folder)


def _goes_on(folder: Path) -> bool:
    return read_manifest(folder).get("status") == "running" and is_locked(folder)


def _stamps(folder: Path) -> list[tuple[int, int]]:
    """When the files that the page is made of were written last, and how long they are."""
    found = [(folder / name).stat() for name in STAMPED if (folder / name).is_file()]
    return [(one.st_mtime_ns, one.st_size) for one in found]
