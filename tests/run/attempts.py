"""One attempt at a run, perhaps hit by a signal at a moment drawn at random, and how it ended."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
from projects import run_project
from run.launching import Process, started

from pivotune.pipeline.distributed import PeerFailed
from pivotune.pipeline.recipe.model import Recipe
from pivotune.pipeline.run.signals import Stopped

# What a signal is called in the count, and what is sent: at once or one soon after the other.
SIGNALS = {
    "SIGKILL": (signal.SIGKILL,),
    "SIGTERM": (signal.SIGTERM,),
    "Ctrl-C": (signal.SIGINT,),
    "Ctrl-C twice": (signal.SIGINT, signal.SIGINT),
}
STOPPED, ELSEWHERE, INTERRUPTED = 75, 76, 130
# How long the other processes of a run may take to notice that one is gone, before they are stopped as launchers do.
GRACE = 2.0
SECONDS = 300


@dataclass(frozen=True)
class Blow:
    """A signal for some of a run's processes when all together have computed for `seconds`, and `later` seconds more.

    By time on the processor the moments are spread alike over a run whatever else the machine does; what is added
    falls into waits for the disk too.
    """

    name: str
    ranks: tuple[int, ...]
    seconds: float
    later: float

    @classmethod
    def drawn(cls, draw: random.Random, seconds: float, processes: int) -> Blow:
        """Any signal (SIGKILL as often as all others), any process or all of them, any moment of `seconds`."""
        name = draw.choice(["SIGKILL"] * (len(SIGNALS) - 1) + [one for one in SIGNALS if one != "SIGKILL"])
        ranks = draw.choice([*((rank,) for rank in range(processes)), tuple(range(processes))])
        return cls(name, ranks, draw.uniform(0.0, seconds), draw.uniform(0.0, 0.05))


@dataclass(frozen=True)
class Ended:
    """How the processes of an attempt ended: exit codes, seconds on the processor, whether the blow came in time."""

    codes: list[int]
    seconds: float
    hit: bool
    outputs: list[str]


def attempt(
    recipe: Recipe,
    out: Path,
    processes: int = 1,
    blow: Blow | None = None,
    environment: Mapping[str, str] | None = None,
) -> Ended:
    """Run the recipe into `out`, and strike. AssertionError when it ends in a way that no signal explains."""
    running = started(out.parent, lambda rank: _as_code(recipe, out), processes, environment)
    watched, codes, hit, gone = _Watched(running), dict[int, int](), False, 0.0
    until = time.monotonic() + SECONDS
    while len(codes) < processes and time.monotonic() < until:
        watched.look()
        codes |= _over(running, codes)
        if blow is not None and not hit and watched.seconds >= blow.seconds:
            time.sleep(blow.later)
            hit = _strike([running[rank].pid for rank in blow.ranks if rank not in codes], SIGNALS[blow.name])
        if any(codes.values()):
            gone = gone or time.monotonic()
            waited = time.monotonic() - gone
            if waited > GRACE:  # the first to end did not end the others: a launcher would
                rest = [one.pid for rank, one in enumerate(running) if rank not in codes]
                _strike(rest, (signal.SIGTERM if waited < 3 * GRACE else signal.SIGKILL,))
        time.sleep(0.002)
    _strike([one.pid for rank, one in enumerate(running) if rank not in codes], (signal.SIGKILL,))
    outputs = [one.output.read_text("utf-8", "replace") for one in running]
    assert len(codes) == processes, f"still running after {SECONDS} s: {outputs}"
    explained = {0, STOPPED, INTERRUPTED, *({ELSEWHERE} if processes > 1 else ())} if hit else {0}
    assert all(code in explained or (hit and code < 0) for code in codes.values()), (codes, blow, outputs)
    for one in running:
        one.output.unlink()
    return Ended([codes[rank] for rank in range(processes)], watched.seconds, hit, outputs)


def _as_code(recipe: Recipe, out: Path) -> None:
    """Run; the exit code says which signal ended it."""
    ends: list[tuple[type[BaseException], int]] = [
        (PeerFailed, ELSEWHERE), (Stopped, STOPPED), (KeyboardInterrupt, INTERRUPTED),
    ]  # fmt: skip
    try:
        run_project(recipe, out)
    except BaseException as error:
        for kind, code in ends:
            if isinstance(error, kind):
                os._exit(code)
        raise


class _Watched:
    """How long some processes have computed."""

    def __init__(self, processes: list[Process]) -> None:
        self._all = {process.pid: psutil.Process(process.pid) for process in processes}
        self._seconds = dict.fromkeys(self._all, 0.0)

    def look(self) -> None:
        for pid, process in self._all.items():
            with suppress(psutil.Error):  # it has ended meanwhile
                times = process.cpu_times()
                self._seconds[pid] = times.user + times.system

    @property
    def seconds(self) -> float:
        return sum(self._seconds.values())


def _over(running: list[Process], known: dict[int, int]) -> dict[int, int]:
    """Exit codes of the processes that have ended since."""
    found = {}
    for rank, process in enumerate(running):
        done, status = os.waitpid(process.pid, os.WNOHANG) if rank not in known else (0, 0)
        if done:
            found[rank] = os.waitstatus_to_exitcode(status)
    return found


def _strike(pids: list[int], numbers: tuple[int, ...]) -> bool:
    """Send the signals to processes that are not waited for yet; whether there was one."""
    for place, number in enumerate(numbers):
        if place:
            time.sleep(0.01)
        for pid in pids:
            os.kill(pid, number)
    return bool(pids)
