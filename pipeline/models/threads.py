"""How many CPU threads a run computes with, where its recipe does not say."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

SMALL = 10_000_000  # parameters; below, a second thread waits more than it computes
CGROUPS = Path("/sys/fs/cgroup")


def choose_threads(parameters: int) -> int:
    """Threads for a model of so many parameters: one for a small one, else one for each core that we may use.

    It depends on the model and on the limits of this process (affinity, OMP_NUM_THREADS, cgroups), never on what else
    runs at the moment: the number of threads may change the last bits of a result.
    """
    threads, limit = torch.get_num_threads(), cgroup_cores()
    return 1 if parameters < SMALL else threads if limit is None else max(1, min(threads, int(limit)))


def cgroup_cores(root: Path = CGROUPS, own: Path = Path("/proc/self/cgroup")) -> float | None:
    """Cores' worth of CPU time that a container or service may use; None where nothing limits it (or not on Linux)."""
    return min(_limits(root, own), default=None)


def _limits(root: Path, own: Path) -> Iterator[float]:
    """The limits of each control group that this process is in, version 2 (`cpu.max`) and 1 (`cpu.cfs_quota_us`)."""
    try:
        lines = [line.split(":", 2) for line in own.read_text("utf-8").splitlines()]
    except OSError:
        return
    for _, controllers, group in (line for line in lines if len(line) == 3):
        if controllers and "cpu" not in controllers.split(","):
            continue
        top = root / controllers if controllers else root
        folder = top / group.lstrip("/")
        for place in (folder, *folder.parents):
            if place.is_relative_to(top):
                yield from _limit(place)


def _limit(folder: Path) -> Iterator[float]:
    try:
        if (folder / "cpu.max").exists():
            quota, period = (folder / "cpu.max").read_text("utf-8").split()
        else:
            quota, period = ((folder / f"cpu.cfs_{name}_us").read_text("utf-8") for name in ("quota", "period"))
        if quota != "max" and int(quota) > 0 and int(period) > 0:
            yield int(quota) / int(period)
    except (OSError, ValueError):
        return
