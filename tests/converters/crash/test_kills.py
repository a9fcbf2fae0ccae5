"""A process that is killed at any moment leaves the old file or the new one, whole."""

import mmap
import os
import random
import signal
import time

import pytest
from crash import faults, jobs

from pivotune.converters import safetensors_file
from pivotune.converters.disk import create_temporary
from pivotune.converters.tensor import RawTensor


@pytest.mark.parametrize("what", jobs.NAMES)
def test_a_kill_at_any_moment_leaves_each_file_old_or_new(what, case):
    work, folder, before, new = case(what)
    points, place = faults.Points(), folder("count")
    with faults.points_at(points):
        work(place)
    assert "write" in points.passed
    assert ("fsync done" in points.passed) == (what != "new files")  # which can be made again from what stays
    for at, name in enumerate(points.passed):
        place = folder(at)
        with faults.points_at(faults.Points(at, faults.die)):
            assert faults.forked(lambda place=place: work(place)) == faults.DIED
        found = jobs.contents(place)
        shown = jobs.without_litter(found)
        assert shown.keys() <= new.keys(), name
        assert all(shown[path] in (new[path], before.get(path)) for path in shown), name
        assert before.keys() <= shown.keys(), name
        assert all(path.endswith(".part") for path in found.keys() - shown.keys()), name
        if shown:
            assert set(jobs.seen(place)) == set(shown), name


def test_kills_at_random_times_never_leave_half_a_file(tmp_path):
    path, source = tmp_path / "x.safetensors", random.Random(1)
    states = [{"x": RawTensor("U8", (1 << 20,), bytes([number]) * (1 << 20))} for number in range(2)]
    safetensors_file.write(path, states[0], {})
    busy = mmap.mmap(-1, 1)  # shared: 1 while a file is being written

    def forever():
        while True:
            for state in states:
                busy[0] = 1
                safetensors_file.write(path, state, {}, overwrite=True)
                busy[0] = 0

    caught = kills = 0
    while kills < 12 or (not caught and kills < 500):  # on a slow machine a kill may come before anything is written
        kills += 1
        busy[0] = 0
        child = os.fork()
        if not child:
            try:
                forever()
            finally:
                os._exit(1)
        time.sleep(source.uniform(0.005, 0.06) * (1 + kills / 50))
        os.kill(child, signal.SIGKILL)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == faults.DIED
        found, _ = safetensors_file.read(path)
        assert bytes(found["x"].data) in (bytes([0]) * (1 << 20), bytes([1]) * (1 << 20))
        caught += busy[0]
    assert all(name == path.name or name.endswith(".part") for name in os.listdir(tmp_path))
    assert caught, "no kill came while a file was written"


@pytest.mark.parametrize("what", ["a new file", "new files"])
def test_a_kill_leaves_nothing_behind_where_files_need_no_name(what, case, tmp_path):
    temporary = create_temporary(tmp_path, True)
    temporary.discard()
    if temporary.named:
        pytest.skip("this file system has no files without a name")
    work, folder, _, new = case(what)
    points, place = faults.Points(), folder("count")
    with faults.points_at(points):
        work(place)
    for at, name in enumerate(points.passed):
        place = folder(at)
        with faults.points_at(faults.Points(at, faults.die)):
            assert faults.forked(lambda place=place: work(place)) == faults.DIED
        assert jobs.contents(place).keys() <= new.keys(), name


def test_leftovers_of_a_killed_process_are_removed_a_day_later(tmp_path):
    old, young, other = (tmp_path / name for name in (f".{'0a' * 8}.part", f".{'1b' * 8}.part", ".mine.part"))
    for file in (old, young, other):
        file.write_bytes(b"1")
    for file in (old, other):
        os.utime(file, (1, 1))
    safetensors_file.write(tmp_path / "x.safetensors", {"x": RawTensor("U8", (1,), b"1")}, {})
    assert {file.name for file in tmp_path.iterdir()} == {young.name, other.name, "x.safetensors"}
