"""The quick start as a user runs it: peak memory, and time against its promise of 90 seconds on two cores."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from measure import Row, child

GIB = 1 << 30


def rows() -> list[Row]:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        found = child([sys.executable, "-m", "pivotune", "run", "quickstart", "--out", str(out)])
        assert (out / "report.html").is_file()
    return [
        Row("quick start: peak memory", "<= 2 GiB", 2, [found.peak / GIB], " GiB"),
        Row("quick start: CPU time / (2 cores x 90 s)", "<= 1", 1, [found.cpu / 180]),
        Row("quick start: wall time", "<= 90 s", 90, [found.wall], " s"),
    ]
