"""Ctrl-C, SIGTERM, a closed terminal (SIGHUP): the first stops training after the current step, the second at once."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from ..errors import StageError


class Stopped(StageError):
    """A signal stopped the run. The message says where, and how the run is resumed.

    `exit_code` is 128 + the signal's number, as shells have it: 130 for Ctrl-C, 143 for SIGTERM.
    """

    def __init__(self, message: str, number: int | None = None) -> None:
        super().__init__(message)
        self.exit_code = 128 + (signal.SIGINT if number is None else number)


STOPPING = "stopping after the current step, with a checkpoint"
ENDING = "all steps are done; the run is being finished"


class StopRequest:
    """The number of the signal that has come, if any; `twice`: a second one has, which ends the run at once.

    `steps_left`: whether the run still trains, so that it can stop after a step.
    """

    number: int | None = None
    twice: bool = False
    steps_left: bool = True

    @property
    def name(self) -> str | None:
        """The signal as messages call it."""
        if self.number is None:
            return None
        return "Ctrl-C" if self.number == signal.SIGINT else signal.Signals(self.number).name

    @property
    def answer(self) -> str:
        """What the first signal causes."""
        return STOPPING if self.steps_left else ENDING


@contextmanager
def interruptible() -> Iterator[None]:
    """Ctrl-C ends the block with KeyboardInterrupt, also where a library turns it into an error of its own."""
    in_main_thread = threading.current_thread() is threading.main_thread()
    if not in_main_thread or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    came = False

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal came
        came = True
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, handle)
    try:
        yield
    except Exception as error:
        if came:  # reading weights, safetensors turns it into "the file cannot be read"
            raise KeyboardInterrupt from error
        raise
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@contextmanager
def catch_signals(progress: Callable[[str], None]) -> Iterator[StopRequest]:
    """Catch the signals in this block; only the main thread can, elsewhere nothing is caught."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def handle(number: int, frame: FrameType | None) -> None:
        if request.number is not None:
            request.twice = True
            raise KeyboardInterrupt
        request.number = number
        _print(progress, f"{request.name}: {request.answer}; once more stops it at once")

    # what is ignored from the start (nohup, a shell's background job) stays so
    caught = [number for number in _signals() if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, handle) for number in caught}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _print(progress: Callable[[str], None], text: str) -> None:
    """Print a line, also when the signal came while another line was written: a stream cannot be entered twice."""
    try:
        progress(text)
    except RuntimeError:
        with suppress(OSError):
            os.write(2, f"{text}\n".encode())


def _signals() -> list[signal.Signals]:
    names = ("SIGINT", "SIGTERM", "SIGHUP")  # Windows has no SIGHUP
    return [getattr(signal, name) for name in names if hasattr(signal, name)]
