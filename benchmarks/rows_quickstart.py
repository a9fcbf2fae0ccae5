"""The quick start as a user runs it: peak memory, and whether its promise of under a minute can be kept.

CPU time of all threads together is an upper bound of the time on idle cores, and other work does not disturb it.
"""

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
        Row("quick start: CPU time of all threads", "<= 30 s", 30, [found.cpu], " s"),
    ]
