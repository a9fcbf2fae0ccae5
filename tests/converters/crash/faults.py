"""Processes that die, and systems that fail, at a place of one's choice."""

import builtins
import os
import signal
import traceback
from contextlib import contextmanager

CALLS = ("fsync", "link", "replace", "rename", "unlink", "mkdir", "rmdir", "sendfile", "copy_file_range")
DIED, REFUSED, OTHER = -signal.SIGKILL, 3, 4  # how a child ended, beside 0


def forked(work):
    """Runs `work` in a child: 0, REFUSED for a ConvertError, OTHER for any other exception, DIED."""
    from pivotune.converters.errors import ConvertError

    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    code = OTHER
    try:
        work()
        code = 0
    except ConvertError:
        code = REFUSED
    except BaseException:  # noqa: BLE001 - shown, and shown by the exit code
        traceback.print_exc()
    finally:
        os._exit(code)


class Points:
    """Counts the moments at which something may go wrong, and does `what` at number `at`."""

    def __init__(self, at=None, what=None):
        self.at, self.what, self.passed = at, what, []

    def reach(self, name):
        self.passed.append(name)
        if len(self.passed) - 1 == self.at:
            self.what()


def die():
    """As if the power went, or somebody lost patience."""
    os.kill(os.getpid(), signal.SIGKILL)


def failing(number):
    """Something to do at a point: the system says no."""

    def fail():
        raise OSError(number, os.strerror(number))

    return fail


class Halved:
    """A file whose every write is two, with a point before, between and after them."""

    def __init__(self, file, points):
        self._file, self._points = file, points

    def __getattr__(self, name):
        return getattr(self._file, name)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        return self._file.__exit__(*error)

    def write(self, data):
        view = memoryview(data)
        half = len(view) // 2
        for part in (view[:half], view[half:]):
            self._points.reach("write")
            self._file.write(part)
            self._file.flush()
        self._points.reach("written")
        return len(view)


@contextmanager
def points_at(points):
    """Every write, and every call that changes a folder or waits for the disk, reaches a point before and after it."""
    kept = {name: getattr(os, name) for name in CALLS if hasattr(os, name)}
    opens = builtins.open

    def watched(name):
        def call(*args, **options):
            points.reach(name)
            result = kept[name](*args, **options)
            points.reach(f"{name} done")
            return result

        return call

    def opening(file, mode="r", *args, **options):
        opened = opens(file, mode, *args, **options)
        return Halved(opened, points) if "b" in mode and mode != "rb" else opened

    try:
        builtins.open = opening
        for name in kept:
            setattr(os, name, watched(name))
        yield
    finally:
        builtins.open = opens
        for name, call in kept.items():
            setattr(os, name, call)
