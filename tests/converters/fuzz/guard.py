"""What a reader of strangers' files must never do: run code, write outside its folder, take too long or too much."""

import os
import resource
import signal
import sys
from contextlib import contextmanager

RUNS = ("os.system", "os.exec", "os.posix_spawn", "os.fork", "os.forkpty", "subprocess.Popen", "pickle.find_class",
        "socket.connect", "ctypes.dlopen")  # fmt: skip
CHANGES = (
    "os.rename",
    "os.link",
    "os.symlink",
    "os.remove",
    "os.mkdir",
    "os.rmdir",
    "os.truncate",
    "os.chmod",
    "os.utime",
)
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class Violation(Exception):
    """The code under test did what it must never do."""


class Hang(BaseException):
    """Too much time for one file. No Exception, so that nothing under test can catch it."""


class Guard:
    """Audit of one process; only what happens inside `watch` counts."""

    def __init__(self):
        self.folder, self.seen, self.count, self.counted = None, [], 0, -1
        sys.addaudithook(self._audit)
        signal.signal(signal.SIGVTALRM, self._tick)

    def start(self, seconds):
        """From now on a `watch` that takes more CPU than this raises Hang, at the latest after twice as much."""
        self.counted = -1
        signal.setitimer(signal.ITIMER_VIRTUAL, seconds, seconds)

    @contextmanager
    def watch(self, folder):
        """Raises Violation for code that ran or a write outside `folder`."""
        self.folder, self.seen = folder, []
        self.count += 1
        try:
            yield
        finally:
            self.folder = None
        if self.seen:
            raise Violation("; ".join(self.seen[:3]))

    def stop(self):
        """No more Hang."""
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)

    def _tick(self, *_):
        if self.folder is not None and self.counted == self.count:
            self.counted = -1
            raise Hang("too long for one file")
        self.counted = self.count

    def _audit(self, event, args):
        if self.folder is None:
            return
        if event in RUNS:
            self.seen.append(f"{event}{args!r:.200}")
        elif event == "open" and isinstance(args[2], int) and args[2] & WRITING:
            self._inside(event, args[0])
        elif event in CHANGES:
            for path in args[:2] if event in ("os.rename", "os.link", "os.symlink") else args[:1]:
                self._inside(event, path)

    def _inside(self, event, path):
        if isinstance(path, int):
            return
        place = os.path.abspath(os.fsdecode(path))
        if place.startswith("/proc/self/fd/"):  # a file without a name: where it was made
            place = os.readlink(place)
        if not (place + os.sep).startswith(self.folder + os.sep):
            self.seen.append(f"{event} outside the folder: {place[:200]!r}")


def limit_memory(more):
    """Let this process grow by `more` bytes of address space, then raise MemoryError."""
    with open("/proc/self/statm", encoding="ascii") as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + more, resource.RLIM_INFINITY))
