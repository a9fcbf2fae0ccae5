"""Makes things go wrong in a run: at a step, or on a disk of its own."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pivotune.pipeline.train import loop

OFTEN = '[checkpoint]\nevery = "1 steps"\n[data]\ncache_latents = "off"\n'


def at_step(monkeypatch: pytest.MonkeyPatch, number: int, do: Callable[[], object]) -> None:
    """Do something when step `number`, from 0, begins."""
    one_step = loop.one_step

    def step(training: Any, clock: Any) -> Any:
        if clock.step == number:
            do()
        return one_step(training, clock)

    monkeypatch.setattr(loop, "one_step", step)


def private_disk(place: Path) -> None:
    """A disk for this process alone, which may mount more of them then. OSError where the system gives none."""
    if not sys.platform.startswith("linux"):
        raise OSError(f"{sys.platform} has no unshare")
    libc, uid, gid = ctypes.CDLL(None, use_errno=True), os.getuid(), os.getgid()
    if libc.unshare(0x10020000):  # CLONE_NEWUSER | CLONE_NEWNS
        raise OSError(ctypes.get_errno(), "unshare")
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"0 {uid} 1")
    Path("/proc/self/gid_map").write_text(f"0 {gid} 1")
    mount_disk(place)


def mount_disk(place: Path, size: str = "64m", *, again: bool = False, read_only: bool = False) -> None:
    """Mount a disk of this size, or change the one that is there."""
    flags = 32 * again + read_only  # MS_REMOUNT, MS_RDONLY
    if ctypes.CDLL(None, use_errno=True).mount(b"tmpfs", str(place).encode(), b"tmpfs", flags, f"size={size}".encode()):
        raise OSError(ctypes.get_errno(), "mount")
