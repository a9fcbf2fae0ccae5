"""The way into the `pivotune` command, without what short commands need not do.

What imports make is never garbage, so the collector does not look at it; and the system takes a process's memory back
whole, so the interpreter need not take its modules apart. Together that was a seventh of an `inspect`.
"""

from __future__ import annotations

import codecs
import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_whole_process = False  # whether `main` has the process for itself


@contextmanager
def importing() -> Iterator[None]:
    """Let the garbage collector rest while modules are imported, and not come back to what they are made of.

    In a process that is another program's nothing is done: what it has dropped by then would never be taken away.
    """
    if not _whole_process:
        yield
        return
    awake = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if awake:
            gc.enable()


def main() -> None:
    """Run the command line and end the process with its exit code."""
    global _whole_process
    _whole_process = True
    _speak_utf8()
    with importing():
        from .cli import main as command
        from .console import prepare_console
    prepare_console()
    try:
        command()
    except SystemExit as end:
        if "torch" not in sys.modules:  # a run has more to tidy up: threads, devices, other processes
            _leave(end.code)
        raise


def _speak_utf8() -> None:
    """Start again in UTF-8 mode where Python knows ASCII file names alone: LC_ALL=C with PYTHONUTF8=0."""
    if codecs.lookup(sys.getfilesystemencoding()).name == "ascii" and sys.executable:
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])


def _leave(code: object) -> None:
    """End at once; where output cannot be written, or the code is a text, leave the ending to the interpreter."""
    if code is None or isinstance(code, int):
        with suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code or 0)
