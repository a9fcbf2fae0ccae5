"""A disk that is full or fails: one clear error, and everything as it was before."""

import builtins
import errno
import os
import resource
import signal
import subprocess

import pytest
from crash import faults, jobs

from pivotune.converters import atomic, safetensors_file
from pivotune.converters.errors import ConvertError

ERRORS = (errno.ENOSPC, errno.EIO, errno.EDQUOT)


@pytest.mark.parametrize("what", jobs.NAMES)
def test_a_failure_leaves_everything_as_before_or_done(what, case):
    work, folder, before, new = case(what)
    points, place = faults.Points(), folder("count")
    with faults.points_at(points):
        work(place)
    named = max(at for at, name in enumerate(points.passed) if name in ("link done", "replace done"))
    for at, name in enumerate(points.passed):
        if name.endswith("done"):
            continue  # a system that did it and says no
        number, place = ERRORS[at % len(ERRORS)], folder(at)
        with faults.points_at(faults.Points(at, faults.failing(number))):
            outcome = outcome_of(work, place)
        found = jobs.contents(place)
        assert outcome is None or os.strerror(number) in outcome, (at, name)
        assert jobs.without_litter(found) == (new if outcome is None or at > named else before), (at, name)
        assert name == "unlink" or found == jobs.without_litter(found), (at, name)
        if outcome and not before and at < named:
            assert not os.listdir(place), (at, name)


def outcome_of(work, place):
    """What the user reads; None if all went well."""
    try:
        work(place)
    except ConvertError as error:
        return str(error)
    return None


@pytest.mark.parametrize("room", [0, 1, 8, 100, 4096, 10_000])
def test_a_file_that_may_not_grow_further_never_appears(room, tmp_path, lora):
    path = tmp_path / "x.safetensors"

    def limited():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))
        safetensors_file.write(path, *lora)

    assert faults.forked(limited) == faults.REFUSED
    assert not os.listdir(tmp_path)


@pytest.fixture
def small_disk(tmp_path):
    place = tmp_path / "disk"
    place.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(place)], check=False, capture_output=True
    )
    if done.returncode:
        pytest.skip("no right to mount a small file system here")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_full_file_system_is_reported_and_keeps_the_old_file(small_disk, lora):
    path = small_disk / "x.safetensors"
    safetensors_file.write(path, *lora)
    old = path.read_bytes()
    (small_disk / "other").write_bytes(bytes(36 << 10))
    tensors, metadata = lora
    with pytest.raises(ConvertError, match="No space left"):
        safetensors_file.write(path, tensors, {**metadata, "new": "1"}, overwrite=True)
    assert path.read_bytes() == old
    assert sorted(os.listdir(small_disk)) == ["other", "x.safetensors"]


@pytest.mark.parametrize("right", [0o555, 0o000])
def test_a_read_only_folder_is_reported(right, tmp_path, lora, monkeypatch):
    out = tmp_path / "out"
    out.mkdir()
    out.chmod(right)
    monkeypatch.chdir(tmp_path)

    def as_nobody():
        if os.geteuid() == 0:
            os.seteuid(65534)
        jobs.write(jobs.Path("out"), lora, overwrite=False)

    assert faults.forked(as_nobody) == faults.REFUSED
    assert not list(out.iterdir())


def test_a_close_that_fails_counts_like_a_write(tmp_path, monkeypatch):
    opens = builtins.open

    class Closing(faults.Halved):
        def __exit__(self, *error):
            self._file.__exit__(*error)
            raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    def opening(file, mode="r", *args, **options):
        return Closing(opens(file, mode, *args, **options), faults.Points())

    monkeypatch.setattr(builtins, "open", opening)
    with pytest.raises(ConvertError, match=os.strerror(errno.EDQUOT)):
        atomic.write_file(tmp_path / "x", lambda file: file.write(b"1"))
    assert not os.listdir(tmp_path)
