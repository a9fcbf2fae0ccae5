"""Runs on disks of many sizes, all too small: after room is made the same command must end in the same bytes.

By hand, as root on Linux: python tests/run/full_disks.py --sizes 30; --kind chooses a kind of run (see kinds.py).
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from projects import run_project
from run.killing import Project, made_files, project
from run.kinds import KINDS

from pivotune.pipeline.errors import StageError
from pivotune.pipeline.records import read_manifest

DONE, REFUSED, FAULT = 0, 75, 1
SMALLEST, ROOM = 32 << 10, 512 << 20  # bytes


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, default=30)
    parser.add_argument("--kind", choices=tuple(KINDS), default="many embeddings")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="full-disks-") as name:
        made = project(Path(name) / "project", options.kind)
        size = sum(path.stat().st_size for path in made.whole.rglob("*") if path.is_file())
        ended: Counter[str] = Counter()
        for number in range(options.sizes):
            room = SMALLEST + (size * 5 // 4 - SMALLEST) * number // max(1, options.sizes - 1)
            ended[run_on_disk(made, Path(name) / "disk", room)] += 1
    counts = ", ".join(f"{count} {what}" for what, count in ended.most_common())
    sys.stdout.write(f"{options.sizes} sizes of disks ({counts}): every run ended in the same bytes, with its report\n")
    return 0


def run_on_disk(made: Project, disk: Path, room: int) -> str:
    """Run on a disk with so many bytes, make room, and run again; what the first run came to."""
    with mounted(disk, room):
        code = run(made, disk / "run")
        assert code in (DONE, REFUSED), f"a disk of {room:,} bytes: exit code {code}"
        status = "refused" if not (disk / "run" / "manifest.json").exists() else read_manifest(disk / "run")["status"]
        subprocess.run(["mount", "-o", f"remount,size={ROOM}", str(disk)], check=True)
        if status != "finished":
            assert run(made, disk / "run") == DONE, f"a disk of {room:,} bytes: not completed after room was made"
        assert (disk / "run" / "report.html").is_file()
        assert read_manifest(disk / "run")["status"] == "finished"
        files, whole = made_files(disk / "run"), made_files(made.whole)
        assert files == whole, [name for name in files.keys() | whole.keys() if files.get(name) != whole.get(name)]
    sys.stdout.write(f"{room:,} bytes: {status}, then completed\n")
    sys.stdout.flush()
    return str(status)


@contextlib.contextmanager
def mounted(disk: Path, room: int) -> Iterator[None]:
    """A disk in memory of so many bytes."""
    disk.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={room}", "tmpfs", str(disk)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def run(made: Project, out: Path) -> int:
    """The run in a process of its own: DONE, REFUSED in one line, or FAULT."""
    pid = os.fork()
    if pid == 0:
        code = FAULT
        try:
            run_project(made.recipe, out, force=True)
            code = DONE
        except StageError as error:
            sys.stderr.write(f"  {error}\n")
            code = REFUSED
        except BaseException:  # noqa: BLE001 - that is what is looked for
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


if __name__ == "__main__":
    sys.exit(main())
