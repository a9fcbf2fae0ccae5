"""Reads what a run left behind, also of a run that broke off in the middle of a line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..run.manifest_file import read_manifest
from ..run.metrics_file import read_rows

__all__ = ["Json", "read_manifest", "read_metrics"]

Json = dict[str, Any]


def read_metrics(folder: Path) -> tuple[list[Json], int]:
    """The steps in order, each once, and how many lines could not be read.

    A resumed run repeats the steps after its checkpoint: the later line counts.
    """
    steps: dict[tuple[int, int], Json] = {}
    unread = 0
    for row in read_rows(folder):
        if row is None:
            unread += 1
        else:
            steps[row["stage"], row["step"]] = row
    return [steps[key] for key in sorted(steps)], unread
