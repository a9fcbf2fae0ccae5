"""Runs in processes of their own, one or several that talk through gloo, as a launcher would start them."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

SECONDS = 300


@dataclass(frozen=True)
class Launched:
    """Exit code of each process (negative for a signal), and what it printed."""

    codes: list[int]
    outputs: list[str]


@dataclass(frozen=True)
class Process:
    """A fork of this process, and the file that gets what it says."""

    pid: int
    output: Path


def launched(
    folder: Path, work: Callable[[int], object], count: int = 2, environment: Mapping[str, str] | None = None
) -> Launched:
    """Do `work(rank)` in `count` forks of this process, as those of one launcher; `folder` gets what they say."""
    processes = started(folder, work, count, environment)
    codes = _ended([process.pid for process in processes])
    return Launched(codes, [process.output.read_text("utf-8") for process in processes])


def started(
    folder: Path, work: Callable[[int], object], count: int, environment: Mapping[str, str] | None = None
) -> list[Process]:
    """Start `count` forks of this process, each with `work(rank)`; one alone knows of no launcher.

    A fork needs no imports of its own, so that hundreds of runs are cheap.
    """
    asked = dict(environment or {})
    if count > 1:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            asked |= {"MASTER_PORT": str(free.getsockname()[1]), "MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1"}
        asked |= {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
    processes = []
    for rank in range(count):
        output = folder / f"output-{time.monotonic_ns()}-{rank}"
        own = asked | ({"RANK": str(rank), "LOCAL_RANK": str(rank)} if count > 1 else {})
        processes.append(Process(_fork(lambda rank=rank: work(rank), own, output), output))
    return processes


def _fork(work: Callable[[], object], environment: Mapping[str, str], output: Path) -> int:
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        from accelerate import PartialState

        PartialState._reset_state()
        if "WORLD_SIZE" in environment:
            torch.set_num_threads(1)  # the threads that computed before the fork are not in it: it would wait for them
        tqdm.set_lock(threading.RLock())  # else forks share one, and a killed one takes it along
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.dup2(os.open(output, os.O_WRONLY | os.O_CREAT), 2)
        os.environ.update(environment)
        work()
        code = 0
    except KeyboardInterrupt:
        code = 130
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
