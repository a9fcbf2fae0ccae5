"""Runs in several processes that talk through gloo, as a launcher would start them."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

SECONDS = 300


@dataclass(frozen=True)
class Launched:
    """Exit code of each process (negative for a signal), and what it said."""

    codes: list[int]
    said: list[str]


def launched(
    folder: Path, work: Callable[[int], object], count: int = 2, environment: Mapping[str, str] | None = None
) -> Launched:
    """Do `work(rank)` in `count` forks of this process, as those of one launcher; `folder` gets what they say."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    asked = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1"}
    asked |= {"MASTER_PORT": str(port), "OMP_NUM_THREADS": "1", **(environment or {})}
    files = [folder / f"said-{time.monotonic_ns()}-{rank}" for rank in range(count)]
    pids = [_fork(lambda rank=rank: work(rank), asked, rank, files[rank]) for rank in range(count)]
    codes = _ended(pids)
    return Launched(codes, [file.read_text("utf-8") for file in files])


def _fork(work: Callable[[], object], environment: Mapping[str, str], rank: int, said: Path) -> int:
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        from accelerate import PartialState

        PartialState._reset_state()
        os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT), 2)
        os.environ.update(environment, RANK=str(rank), LOCAL_RANK=str(rank))
        work()
        code = 0
    except Exception as error:  # noqa: BLE001 (its parent reads it)
        os.write(2, f"{type(error).__name__}: {error}\n".encode())
    finally:
        os._exit(code)


def _ended(pids: list[int]) -> list[int]:
    until = time.monotonic() + SECONDS
    codes: dict[int, int] = {}
    while len(codes) < len(pids):
        for pid in pids:
            done, status = os.waitpid(pid, os.WNOHANG) if pid not in codes else (0, 0)
            if done:
                codes[pid] = os.waitstatus_to_exitcode(status)
        if time.monotonic() > until:
            for pid in set(pids) - codes.keys():
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
            raise AssertionError(f"still running after {SECONDS} s: {len(pids) - len(codes)} of {len(pids)} processes")
        time.sleep(0.01)
    return [codes[pid] for pid in pids]
