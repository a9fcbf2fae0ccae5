"""Ctrl-C, SIGTERM, a closed terminal (SIGHUP): the first stops the training at its next step, the second at once."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from ..errors import StageError


class Stopped(StageError):
    """The training was asked to stop, and did so with a checkpoint."""


STOPPING = "stopping at the next step, with a checkpoint"
ENDING = "all steps are done, and the run is brought to its end"


class StopAsked:
    """Whether a signal has come, and which; `twice`: a second one has, which is to end the run at once.

    `steps` says whether a step is to come at which the run can stop.
    """

    name: str | None = None
    twice: bool = False
    steps: bool = True

    @property
    def answer(self) -> str:
        """What the first signal brings about."""
        return STOPPING if self.steps else ENDING


@contextmanager
def interruptible() -> Iterator[None]:
    """Ctrl-C ends the block as KeyboardInterrupt, also where a library makes an error of its own of it."""
    ours = threading.current_thread() is threading.main_thread()
    if not ours or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    came = False

    def heard(number: int, frame: FrameType | None) -> None:
        nonlocal came
        came = True
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, heard)
    try:
        yield
    except Exception as error:
        if came:  # reading weights, safetensors turns it into "the file cannot be read"
            raise KeyboardInterrupt from error
        raise
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@contextmanager
def signals_caught(say: Callable[[str], None]) -> Iterator[StopAsked]:
    """Catch the signals while the block runs; only the main thread can, elsewhere nothing is caught."""
    asked = StopAsked()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return

    def heard(number: int, frame: FrameType | None) -> None:
        if asked.name is not None:
            asked.twice = True
            raise KeyboardInterrupt
        asked.name = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
        _said(say, f"{asked.name}: {asked.answer} (again: at once)")

    # what is ignored from the start (nohup, a shell's background job) stays so
    caught = [number for number in _signals() if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, heard) for number in caught}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _said(say: Callable[[str], None], text: str) -> None:
    """Say it, also when the signal came while another line was being written: a stream refuses to be entered twice."""
    try:
        say(text)
    except RuntimeError:
        with suppress(OSError):
            os.write(2, f"{text}\n".encode())


def _signals() -> list[signal.Signals]:
    names = ("SIGINT", "SIGTERM", "SIGHUP")  # Windows has no SIGHUP
    return [getattr(signal, name) for name in names if hasattr(signal, name)]
