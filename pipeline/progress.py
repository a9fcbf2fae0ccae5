"""Progress of long work: a bar on a terminal, lines in a log."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TextIO

import click

from .text import count_of

SECONDS, SHARE = 30.0, 0.1  # at least this time and this share of the work, between two lines of a log
LONGEST = 600.0  # seconds without a line


@contextmanager
def progress(
    total: int, desc: str, unit: str, *, initial: int = 0, shown: bool = True, leave: bool = True
) -> Iterator[Callable[[str], None]]:
    """Give a function to call whenever one more of `total` is done, with a short text for the bar.

    `initial` of them are done already. The progress goes to stderr, if `shown`.
    """
    if not shown:
        yield lambda about: None
    elif _has_room(sys.stderr):
        from tqdm import tqdm

        with tqdm(total=total, initial=initial, desc=desc, unit=unit, dynamic_ncols=True, leave=leave) as bar:

            def done(about: str) -> None:
                bar.set_postfix_str(about, refresh=False)
                bar.update()

            yield done
    else:
        yield _Lines(total, desc, unit, initial).done


def _has_room(stream: TextIO | None) -> bool:
    """Whether it is a terminal in which a bar fits; some have no columns. None is a closed stderr."""
    try:
        return stream is not None and stream.isatty() and os.get_terminal_size(stream.fileno()).columns > 0
    except (OSError, ValueError):
        return False


class _Lines:
    """Lines such as `train: 120 of 400 steps, 3.2 a second, 01:27 left, loss 0.1234`."""

    def __init__(self, total: int, desc: str, unit: str, initial: int) -> None:
        self.total, self.desc, self.unit, self.initial = total, desc, unit, initial
        self.count = self.logged = initial
        self.begin = self.when = time.monotonic()

    def done(self, about: str) -> None:
        self.count += 1
        now = time.monotonic()
        much = self.count - self.logged >= SHARE * self.total and now - self.when >= SECONDS
        if self.count < self.total and (much or now - self.when >= LONGEST):
            self.logged, self.when = self.count, now
            with suppress(OSError, ValueError):  # a full disk or a closed pipe must not end a run
                click.echo(self._line(now - self.begin, about), err=True)

    def _line(self, seconds: float, about: str) -> str:
        from tqdm import tqdm

        rate = (self.count - self.initial) / seconds
        speed = f"{rate:.3g} a second" if rate >= 1 else f"{1 / rate:.3g} seconds each"
        left = tqdm.format_interval(round((self.total - self.count) / rate))
        line = f"{self.desc}: {self.count:,} of {count_of(self.total, self.unit)}, {speed}, {left} left"
        return f"{line}, {about}" if about else line
