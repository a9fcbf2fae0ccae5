"""Ctrl-C, SIGTERM, a closed terminal (SIGHUP): the first stops the training at its next step, the second at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from ..errors import StageError


class Stopped(StageError):
    """The training was asked to stop, and did so with a checkpoint."""


class StopAsked:
    """Whether a signal has come, and which."""

    name: str | None = None


@contextmanager
def listening(say: Callable[[str], None]) -> Iterator[StopAsked]:
    """Catch the signals while the block runs; only the main thread can, elsewhere nothing is caught."""
    asked = StopAsked()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return

    def heard(number: int, frame: FrameType | None) -> None:
        if asked.name is not None:
            raise KeyboardInterrupt
        asked.name = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
        say(f"{asked.name}: stopping at the next step, with a checkpoint (again: at once)")

    # what is ignored from the start (nohup, a shell's background job) stays so
    caught = [number for number in _signals() if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, heard) for number in caught}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _signals() -> list[signal.Signals]:
    names = ("SIGINT", "SIGTERM", "SIGHUP")  # Windows has no SIGHUP
    return [getattr(signal, name) for name in names if hasattr(signal, name)]
