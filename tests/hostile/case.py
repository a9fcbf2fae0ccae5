"""One hostile input: files in a folder, a command on them, and what that command must never do.

The command runs in a forked process whose every file access is audited. A case fails on a traceback, a signal,
more than `SECONDS` of CPU or `PATIENCE` of waiting, more than `MEMORY` beyond that at the start, code that runs, or any
read, write or deletion outside the folder.
"""

from __future__ import annotations

import hashlib
import os
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

SECONDS = 10.0  # of CPU
PATIENCE = 60.0  # seconds: a FIFO that nobody writes to costs no CPU
MEMORY = 1 << 30  # bytes beyond those at the start
CEILING = 6 << 30  # bytes of address space beyond that, so that a fault does not exhaust the machine
EXIT_CODES = (0, 1, 2, 130)
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
RUNS = ("os.system", "os.exec", "os.posix_spawn", "os.forkpty", "subprocess.Popen", "socket.connect", "pty.spawn")
CHANGES = {"os.rename": 2, "os.link": 2, "os.symlink": 2, "os.remove": 1, "os.mkdir": 1, "os.rmdir": 1,
           "os.truncate": 1, "os.chmod": 1, "os.utime": 1}  # fmt: skip
WATCHED = {*RUNS, *CHANGES, "open", "os.listdir", "os.scandir"}
SECRET = "SECRET-4711"


@dataclass(frozen=True)
class Case:
    """`arrange` fills an empty folder, in which the command line `arguments` runs.

    Next to it a folder `outside` has files that must not be accessed. `may_read` names what else may be read (a model
    shared by cases).
    """

    name: str
    arrange: Callable[[Path], None]
    arguments: tuple[str, ...]
    may_read: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """How the command ended: its exit code, its output, and every rule it broke (empty: passed)."""

    code: int
    text: str
    faults: tuple[str, ...]


def attack(case: Case, sandbox: Path) -> Outcome:
    """Arrange and run one case in `sandbox`, which is emptied first and left as it is afterwards."""
    shutil.rmtree(sandbox, ignore_errors=True)
    work, outside = sandbox / "work", sandbox / "outside"
    work.mkdir(parents=True)
    _write_outside(outside)
    case.arrange(work)
    before = _fingerprint(outside)
    code, faults = _run(case, sandbox)
    text = (sandbox / "printed.txt").read_text("utf-8", "replace")
    if "Traceback (most recent call last)" in text:
        faults.append("traceback")
    elif code not in EXIT_CODES:
        faults.append(f"exit code {code}")
    if SECRET in text:
        faults.append("printed a file from outside")
    if _fingerprint(outside) != before:
        faults.append("changed a file outside")
    return Outcome(code, text, tuple(dict.fromkeys(faults)))


def _write_outside(folder: Path) -> None:
    """Write files with a secret that no command may read, change or delete."""
    for name in ("private.txt", "recipe.toml", "manifest.json", "deep/down.json"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"{SECRET}\n", "utf-8")


def _fingerprint(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
            for path in sorted(folder.rglob("*"))}  # fmt: skip


def _run(case: Case, sandbox: Path) -> tuple[int, list[str]]:
    """The exit code of the command (negative: a signal) and the rules that it broke."""
    notes = sandbox / "faults.txt"
    child = os.fork()
    if child == 0:
        code = 70
        try:
            code = _command(case, sandbox, notes)
        finally:
            os._exit(code)
    status, usage, late = _waited(child)
    faults = notes.read_text("utf-8", "replace").splitlines() if notes.exists() else []
    if late:
        faults.append(f"took more than {late}")
    if (grown := usage.ru_maxrss * 1024 - _resident()) > MEMORY:
        faults.append(f"used {grown >> 20} MiB more than at the start")
    return os.waitstatus_to_exitcode(status), faults


def _waited(child: int) -> tuple[int, resource.struct_rusage, str]:
    begin, late = time.monotonic(), ""
    while True:
        done, status, usage = os.wait4(child, os.WNOHANG)
        if done:
            return status, usage, late or (f"{SECONDS} s of CPU" if _cpu(usage) > SECONDS else "")
        if time.monotonic() - begin > PATIENCE:
            late = f"{PATIENCE} s"
            os.kill(child, signal.SIGKILL)
        time.sleep(0.01)


def _cpu(usage: resource.struct_rusage) -> float:
    return usage.ru_utime + usage.ru_stime


def _resident() -> int:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def _command(case: Case, sandbox: Path, notes: Path) -> int:
    """In the forked process: the command line, with its output in a file, audited; its exit code."""
    os.setsid()
    printed = os.open(sandbox / "printed.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    faults = os.open(notes, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(printed, 1)
    os.dup2(printed, 2)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.chdir(sandbox / "work")
    os.environ |= {"HOME": str(sandbox / "work"), "PIVOTUNE_CACHE": str(sandbox / "work" / "cache"), "PWD": os.getcwd()}
    with open("/proc/self/statm", encoding="ascii") as file:
        size = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + CEILING, resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_CPU, (int(4 * SECONDS), int(4 * SECONDS) + 1))
    from pivotune.pipeline.cli import main as cli

    sys.argv = ["pivotune", *case.arguments]
    sys.addaudithook(_Audit(sandbox, case.may_read, faults))
    try:
        cli.main()
        code: object = 0
    except SystemExit as end:
        code = end.code
    except BaseException:  # noqa: BLE001 (tracebacks are the fault that is looked for)
        import traceback

        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return code if isinstance(code, int) else 0 if code is None else 1


class _Audit:
    """Audit hook that writes a line to `faults` for each access that is not allowed."""

    def __init__(self, sandbox: Path, may_read: tuple[Path, ...], faults: int) -> None:
        self.sandbox, self.work, self.outside = (
            os.path.realpath(path) for path in (sandbox, sandbox / "work", sandbox / "outside")
        )
        self.may_read = tuple(os.path.realpath(path) for path in may_read)
        self.temporary = tuple(os.path.realpath(path) for path in (os.environ.get("TMPDIR", "/tmp"), "/dev/shm"))
        self.faults, self.busy = faults, False

    def __call__(self, event: str, arguments: tuple[object, ...]) -> None:
        if self.busy or event not in WATCHED:
            return
        self.busy = True
        try:
            self._check(event, arguments)
        finally:
            self.busy = False

    def _check(self, event: str, arguments: tuple[object, ...]) -> None:
        if event in RUNS:
            self._fault(event, repr(arguments)[:200])
        elif event in CHANGES:
            folder = arguments[-1] if isinstance(arguments[-1], int) and arguments[-1] >= 0 else None
            for path in arguments[: CHANGES[event]]:
                if event != "os.symlink" or path is not arguments[0]:
                    self._check_write(event, path, folder, follow=event in ("os.truncate", "os.chmod", "os.utime"))
        elif event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITING:
            self._check_write(event, arguments[0], None, follow=not arguments[2] & os.O_NOFOLLOW)
        else:
            self._check_read(event, arguments[0])

    def _check_write(self, event: str, path: object, folder: object, *, follow: bool) -> None:
        real = _real_path(path, folder, follow=follow)
        if real is None or _inside(real, self.work) or real.startswith(("/dev/null", f"/proc/{os.getpid()}/fd/")):
            return
        if not _inside(real, self.sandbox) and any(_inside(real, folder) for folder in self.temporary):
            return
        self._fault(f"{event} (write)", real)

    def _check_read(self, event: str, path: object) -> None:
        real = _real_path(path, None, follow=True)
        if real is None or _inside(real, self.work) or any(_inside(real, folder) for folder in self.may_read):
            return
        given = os.path.abspath(os.fsdecode(path))  # type: ignore[call-overload]
        if _inside(real, self.outside) or _inside(given, self.work) or real in ("/etc/passwd", "/dev/zero"):
            self._fault(f"{event} (read)", real)

    def _fault(self, event: str, what: str) -> None:
        os.write(self.faults, f"{event} outside: {what}".replace("\n", " ").encode(errors="replace") + b"\n")


def _real_path(path: object, folder: object, *, follow: bool) -> str | None:
    """A path without links; the last component is resolved only if the call follows it. None for file descriptors."""
    if isinstance(path, int) or path is None:
        return None
    text = os.fsdecode(path)  # type: ignore[call-overload]
    if isinstance(folder, int) and not os.path.isabs(text):
        text = os.path.join(os.readlink(f"/proc/self/fd/{folder}"), text)
    if follow:
        return os.path.realpath(text)
    parent, name = os.path.split(os.path.abspath(text))
    return os.path.join(os.path.realpath(parent), name)


def _inside(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip(os.sep) + os.sep)
