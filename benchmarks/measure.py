"""How things are timed here: in turn within one process, as CPU time of one thread, ratios round by round."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

HERE = Path(__file__).parent

# The allocator keeps its pages, as a GPU's does. This favours methods that copy whole tables.
KEEP_PAGES = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 36), "MALLOC_TOP_PAD_": str(1 << 27)}


@dataclass(frozen=True)
class Row:
    """One goal and what was measured: a value a round, each to be at most `limit`."""

    name: str
    goal: str
    limit: float
    values: list[float]
    unit: str = ""

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def met(self) -> bool:
        return self.median <= self.limit

    def record(self) -> dict[str, object]:
        return {**asdict(self), "median": self.median, "met": self.met}


def in_turn(modes: Mapping[str, Callable[[], object]], rounds: int, times: Mapping[str, int]) -> dict[str, list[float]]:
    """CPU seconds a call of each mode, one value a round. Each round runs every mode, `times` calls at a stretch."""
    for call in modes.values():
        call()
        call()
    seconds: dict[str, list[float]] = {name: [] for name in modes}
    for _ in range(rounds):
        for name, call in modes.items():
            count = times[name]
            begin = time.process_time_ns()
            for _ in range(count):
                call()
            seconds[name].append((time.process_time_ns() - begin) / 1e9 / count)
    return seconds


def ratios(above: Sequence[float], below: Sequence[float]) -> list[float]:
    """Quotients round by round."""
    return [a / b for a, b in zip(above, below, strict=True)]


@dataclass(frozen=True)
class Child:
    """What a process cost, in seconds and bytes, and what it said."""

    cpu: float
    wall: float
    peak: int
    output: str


def child(command: Sequence[str], environment: Mapping[str, str] | None = None) -> Child:
    """Run a command to its end; CPU seconds and peak memory are those of that process. Raises when it fails."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}  # as users have it
    begin = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**kept, **(environment or {})})
    assert process.stdout is not None
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command, output)
    scale = 1 if sys.platform == "darwin" else 1024
    return Child(usage.ru_utime + usage.ru_stime, time.monotonic() - begin, usage.ru_maxrss * scale, output)


def in_fresh_process(script: str, *arguments: str, keep_pages: bool = False) -> object:
    """The JSON that a script of this folder prints last."""
    found = child([sys.executable, str(HERE / script), *arguments], KEEP_PAGES if keep_pages else None)
    return json.loads(found.output.splitlines()[-1])
