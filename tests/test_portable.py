"""No code relies on one operating system: lines end alike, and names that a system lacks are used where guarded."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
FILES = sorted(path for folder in ("pipeline", "converters", "schemas") for path in (ROOT / folder).rglob("*.py"))
WRITTEN_AS_IS = {"pipeline/lock.py"}  # its file is a lock, which no hash covers
# What Windows or macOS lacks (Python 3.11 to 3.13).
MODULES = {"fcntl", "resource", "pwd", "grp", "termios", "pty", "tty", "posix", "ctypes", "_winapi", "msvcrt", "winreg"}
NAMES = {
    "os": {
        "O_CLOEXEC", "O_DIRECTORY", "O_NOFOLLOW", "O_NONBLOCK", "O_PATH", "O_TMPFILE", "O_BINARY", "chown", "fchmod",
        "fchown", "fork", "getuid", "geteuid", "getgid", "getpgid", "kill", "killpg", "lchown", "mkfifo", "pread",
        "pwrite", "copy_file_range", "sendfile", "posix_fadvise", "posix_fallocate", "posix_spawn", "sched_getaffinity",
        "sched_setaffinity", "setsid", "statvfs", "sysconf", "getloadavg", "startfile", "memfd_create", "waitpid",
    },
    "signal": {"SIGHUP", "SIGKILL", "SIGBREAK", "SIGALRM", "SIGUSR1", "SIGUSR2", "SIGPIPE", "SIGQUIT", "alarm",
               "setitimer", "pthread_sigmask", "pause", "CTRL_BREAK_EVENT", "CTRL_C_EVENT"},
}  # fmt: skip
# Each file's uses that are guarded, and by what.
GUARDED: dict[tuple[str, str], str] = {
    ("pipeline/console.py", "signal.SIGBREAK"): "hasattr",
    ("pipeline/run/start.py", "os.kill"): "not reached on Windows, where it would end the process",
    ("converters/safetensors_bytes.py", "os.copy_file_range"): "hasattr",
    ("converters/disk.py", "os.O_DIRECTORY"): "hasattr",
    ("converters/disk.py", "os.O_TMPFILE"): "hasattr",
}


def written(path: Path) -> Iterator[tuple[str, bool]]:
    """Calls that write text, and whether they say how lines end."""
    for call in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute):
            modes = {argument.value for argument in ast.walk(call) if isinstance(argument, ast.Constant)}
            if call.func.attr == "write_text" or (call.func.attr == "open" and modes & {"w", "x", "a"}):
                yield (
                    f"{path.relative_to(ROOT)}:{call.lineno}",
                    any(embedding.arg == "newline" for embedding in call.keywords),
                )


def test_lines_of_written_files_end_alike_on_every_system() -> None:
    files = [path for path in FILES if path.relative_to(ROOT).as_posix() not in WRITTEN_AS_IS]
    places = [place for path in files for place in written(path)]
    assert len(places) > 5
    assert [place for place, ends in places if not ends] == []


def of_one_system(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            if node.attr in NAMES.get(node.value.id, ()):
                yield f"{node.value.id}.{node.attr}"
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.partition(".")[0] in MODULES)
        elif isinstance(node, ast.ImportFrom) and node.module in MODULES:
            yield node.module
        elif isinstance(node, ast.ImportFrom) and node.module in NAMES:
            yield from (f"{node.module}.{one.name}" for one in node.names if one.name in NAMES[node.module])


def test_names_that_a_system_lacks_stand_where_they_are_guarded() -> None:
    found = {(path.relative_to(ROOT).as_posix(), name) for path in FILES for name in of_one_system(path)}
    assert found - GUARDED.keys() == set()
    assert GUARDED.keys() - found == set(), "no longer used"
