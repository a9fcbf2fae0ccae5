"""One process a folder, and a lock that no dead process holds."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock

from pivotune.pipeline.errors import StageError
from pivotune.pipeline.lock import folder_lock, is_locked

HOLD = """
import sys, time
from pathlib import Path
from pivotune.pipeline.lock import folder_lock
with folder_lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_process_is_refused_and_a_killed_one_releases_the_lock(tmp_path: Path) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    assert is_locked(tmp_path)
    with (
        pytest.raises(StageError, match=f"process {holder.pid} on .* is running in this folder"),
        folder_lock(tmp_path),
    ):
        pass
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert not is_locked(tmp_path)
    with folder_lock(tmp_path):
        assert is_locked(tmp_path)
    assert not is_locked(tmp_path)


def test_a_folder_without_a_lock_stays_so(tmp_path: Path) -> None:
    assert not is_locked(tmp_path)
    assert not list(tmp_path.iterdir())


NO_LOCKS = """
import errno, fcntl
def none(*args):
    raise OSError(errno.ENOSYS, "Function not implemented")
fcntl.flock = none
"""


def test_without_file_locks_a_killed_process_releases_the_lock_and_another_machine_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fcntl = pytest.importorskip("fcntl", reason="this system locks in another way")

    def none(*args: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", none)
    hold = [sys.executable, "-W", "ignore", "-c", NO_LOCKS + HOLD, str(tmp_path)]
    holder = subprocess.Popen(hold, stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(StageError, match=f"process {holder.pid} on .* is running"), folder_lock(tmp_path):
        pass
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with folder_lock(tmp_path):
        assert is_locked(tmp_path)
    assert not is_locked(tmp_path)
    (tmp_path / ".lock").write_text("4711\nelsewhere\n", "utf-8")
    with pytest.raises(StageError, match=r"process 4711 on elsewhere .*delete .*/\.lock"), folder_lock(tmp_path):
        pass


def test_a_stale_lock_file_is_replaced(tmp_path: Path) -> None:
    (tmp_path / ".lock").write_text("4711\nelsewhere\n", "utf-8")
    with folder_lock(tmp_path):
        assert "elsewhere" not in (tmp_path / ".lock").read_text("utf-8")


def test_a_lock_with_the_same_process_number_of_another_machine_is_rewritten(tmp_path: Path) -> None:
    (tmp_path / ".lock").write_text(f"{os.getpid()}\nelsewhere\n", "utf-8")  # in containers nearly all have one number
    with folder_lock(tmp_path), pytest.raises(StageError) as raised, folder_lock(tmp_path):
        pass
    assert "elsewhere" not in str(raised.value)
    assert "delete" not in str(raised.value)


def test_a_disk_that_refuses_every_lock_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    (tmp_path / ".lock").touch()
    monkeypatch.setattr(FileLock, "acquire", refuse)
    assert not is_locked(tmp_path)
    with pytest.raises(StageError, match=r"cannot be locked .*choose another --out"), folder_lock(tmp_path):
        pass


def test_a_lock_that_is_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "victim.txt").write_text("mine", "utf-8")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").symlink_to(tmp_path / "victim.txt")
    with pytest.raises(StageError, match="is a link"), folder_lock(tmp_path / "run"):
        pass
    assert (tmp_path / "victim.txt").read_text("utf-8") == "mine"
