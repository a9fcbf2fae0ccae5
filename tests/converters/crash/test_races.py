"""Two processes that write one name at once: one wins, the other fails with an error."""

import errno
import os

import pytest
from crash import faults

from pivotune.converters import atomic

MANY = 4


def no(*_, **__):
    raise OSError(errno.EPERM, os.strerror(errno.EPERM))


@pytest.fixture(params=["links", "no links"])
def system(request, monkeypatch):
    if request.param != "links":
        monkeypatch.setattr(os, "link", no)
    return request.param


def race(path, overwrite):
    """How MANY processes ended, all of which had found the name free, or theirs to take, before the first took it."""
    arrived, go = os.pipe(), os.pipe()
    children = []
    for number in range(MANY):
        child = os.fork()
        if not child:
            data = bytes([65 + number]) * 300_000

            def check(_):
                os.write(arrived[1], b"x")
                os.read(go[0], 1)

            def work(data=data, check=check):
                atomic.write_file(path, lambda file: file.write(data), verify=check, overwrite=overwrite)

            os._exit(faults.forked(work) % 256)
        children.append(child)
    os.close(arrived[1])  # so that a writer that dies before is not waited for
    for _ in range(MANY):
        os.read(arrived[0], 1)
    os.write(go[1], b"x" * MANY)
    for end in (arrived[0], *go):
        os.close(end)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


@pytest.mark.parametrize("time", range(3))
def test_one_of_several_writers_of_a_new_file_wins(time, system, tmp_path):
    path = tmp_path / "x"
    ended = race(path, overwrite=False)
    assert sorted(ended) == [0] + [faults.REFUSED] * (MANY - 1)
    assert path.read_bytes() == bytes([65 + ended.index(0)]) * 300_000
    assert os.listdir(tmp_path) == ["x"]


def test_each_of_several_overwriting_writers_leaves_a_complete_file(tmp_path):
    path = tmp_path / "x"
    assert race(path, overwrite=True) == [0] * MANY
    assert path.read_bytes() in [bytes([65 + number]) * 300_000 for number in range(MANY)]
    assert os.listdir(tmp_path) == ["x"]
