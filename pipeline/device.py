"""Where a run computes: device, dtype and the number of CPU threads."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from .errors import StageError
from .text import count_of


def pick_device(wanted: str) -> torch.device:
    """`auto` is CUDA if available, else MPS, XPU or CPU; any other value is taken as it is.

    Raises StageError for a device this torch does not have.
    """
    present: dict[str, Callable[[], bool]] = {
        "cuda": torch.cuda.is_available, "mps": torch.backends.mps.is_available, "xpu": _xpu, "cpu": lambda: True,
    }  # fmt: skip
    if wanted == "auto":
        return torch.device(next(kind for kind, there in present.items() if there()))
    device = torch.device(wanted)
    if not present[device.type]():
        have = ", ".join(kind for kind, there in present.items() if there())
        raise StageError(
            f"device = {wanted!r}: this torch ({torch.__version__}) supports only {have}; use one of them, or 'auto'"
        )
    count = {"cuda": torch.cuda.device_count, "xpu": _xpu_count}.get(device.type, lambda: 1)()
    if (device.index or 0) >= count:
        found = count_of(count, f"{device.type} device")
        raise StageError(f"device = {wanted!r}: this machine has {found}, counted from 0; choose another, or 'auto'")
    return device


def _xpu() -> bool:
    return hasattr(torch, "xpu") and torch.xpu.is_available()


def _xpu_count() -> int:
    return torch.xpu.device_count()


def device_name(device: torch.device) -> str:
    """A name for people: the accelerator's, or `CPU`."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type.upper()


def peak_memory(device: torch.device) -> int | None:
    """Bytes of accelerator memory the process has used at most, or None where torch does not count it."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None


def make_deterministic(seed: int, threads: int | None) -> None:
    """Same recipe, same machine, same versions: same bytes. What has no deterministic kernel warns instead of failing.

    Call it before anything is computed: cuBLAS reads its workspace from the environment when it starts.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if threads is not None:
        torch.set_num_threads(threads)
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = False
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False


SMALL = 10_000_000  # parameters; below, a second thread waits more than it computes
CGROUPS = Path("/sys/fs/cgroup")


def choose_threads(parameters: int) -> int:
    """Threads for a model of this many parameters: one for a small model, else one for each core that may be used.

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
        for parent in (folder, *folder.parents):
            if parent.is_relative_to(top):
                yield from _limit(parent)


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
