"""Where a run computes and with which data type; the one place that asks which accelerators there are."""

from __future__ import annotations

import os
from collections.abc import Callable

import torch

from ..errors import StageError

DTYPES: dict[str, torch.dtype] = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def pick_device(wanted: str) -> torch.device:
    """`auto` is CUDA where there is one, else MPS, XPU, CPU; anything else is taken at its word.

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
        raise StageError(f"device = {wanted!r}: this torch ({torch.__version__}) has {have}; leave it out for the best")
    count = {"cuda": torch.cuda.device_count, "xpu": _xpu_count}.get(device.type, lambda: 1)()
    if (device.index or 0) >= count:
        raise StageError(f"device = {wanted!r}: there are {count} of that kind, numbered from 0")
    return device


def _xpu() -> bool:
    return hasattr(torch, "xpu") and torch.xpu.is_available()


def _xpu_count() -> int:
    return torch.xpu.device_count()


def device_name(device: torch.device) -> str:
    """A name for people: the accelerator's, or `CPU`."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type.upper()


def peak_memory(device: torch.device) -> int | None:
    """Bytes of accelerator memory the process has used at most, or None where torch does not tell."""
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
