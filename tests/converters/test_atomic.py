import errno
import os

import pytest

from pivotune.converters import atomic, disk
from pivotune.converters.errors import ConvertError


def put(text):
    return lambda file: file.write(text)


def write_both(a, b, *, verify=None, meanwhile=lambda: None):
    with atomic.batch() as files:
        files.add(a, put(b"mine"))
        files.add(b, put(b"mine"), verify)
        meanwhile()


def refuse(path):
    raise ConvertError("not what was written")


def test_a_file_that_fails_its_check_never_appears(tmp_path):
    with pytest.raises(ConvertError, match="not what was written"):
        atomic.write_file(tmp_path / "x", put(b"1"), verify=refuse)
    assert not os.listdir(tmp_path)


def test_a_full_disk_leaves_the_old_file(tmp_path):
    (tmp_path / "x").write_bytes(b"old")

    def fill(file):
        file.write(b"new")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(ConvertError, match="No space left"):
        atomic.write_file(tmp_path / "x", fill, overwrite=True)
    assert (tmp_path / "x").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["x"]


def test_a_batch_appears_completely_or_not_at_all(tmp_path):
    with pytest.raises(ConvertError):
        write_both(tmp_path / "a", tmp_path / "b", verify=refuse)
    assert not os.listdir(tmp_path)
    with atomic.batch() as files:
        files.add(tmp_path / "a", put(b"1"))
        files.add(tmp_path / "sub" / "b", put(b"2"))
        assert not (tmp_path / "a").exists()
    assert (tmp_path / "a").read_bytes() + (tmp_path / "sub" / "b").read_bytes() == b"12"


def test_a_file_created_meanwhile_is_not_overwritten_and_the_batch_is_rolled_back(tmp_path):
    b = tmp_path / "b"
    with pytest.raises(ConvertError, match="already exists"):
        write_both(tmp_path / "a", b, meanwhile=lambda: b.write_bytes(b"theirs"))
    assert os.listdir(tmp_path) == ["b"]
    assert (tmp_path / "b").read_bytes() == b"theirs"


def test_without_hard_links_a_name_is_still_claimed_first(tmp_path, monkeypatch):
    def no_links(*_, **__):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    atomic.write_file(tmp_path / "x", put(b"1"))
    y = tmp_path / "y"
    with pytest.raises(ConvertError, match="already exists"):
        write_both(tmp_path / "a", y, meanwhile=lambda: y.write_bytes(b"theirs"))
    assert (tmp_path / "x").read_bytes() + y.read_bytes() == b"1theirs"
    assert sorted(os.listdir(tmp_path)) == ["x", "y"]


def test_two_files_of_one_name_and_dangling_links_are_refused(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConvertError, match="two embeddings"):
        write_both(tmp_path / "a", tmp_path / "a")
    with pytest.raises(ConvertError, match="already exists"):
        atomic.write_file(tmp_path / "link", put(b"1"))
    assert os.listdir(tmp_path) == ["link"]


def test_a_folder_made_for_a_failed_batch_is_removed(tmp_path):
    with pytest.raises(ConvertError):
        write_both(tmp_path / "new" / "deep" / "a", tmp_path / "other" / "b", verify=refuse)
    assert not os.listdir(tmp_path)


def test_two_batches_of_one_command_never_write_one_file_even_with_overwrite(tmp_path):
    claimed = set()
    with atomic.batch(overwrite=True, claimed=claimed) as files:
        files.add(tmp_path / "a", put(b"1"))
    with pytest.raises(ConvertError, match="two embeddings"), atomic.batch(overwrite=True, claimed=claimed) as files:
        files.add(tmp_path / "a", put(b"2"))
    assert (tmp_path / "a").read_bytes() == b"1"


def test_a_dry_batch_reports_existing_files_and_writes_nothing(tmp_path):
    (tmp_path / "old").write_bytes(b"old")
    with atomic.batch(dry=True) as files:
        files.add(tmp_path / "new" / "a", put(b"1"), refuse)
        with pytest.raises(ConvertError, match="already exists"):
            files.add(tmp_path / "old", put(b"1"))
    assert os.listdir(tmp_path) == ["old"]


def test_a_file_and_its_folder_are_flushed(tmp_path, no_waiting_for_disks):
    atomic.write_file(tmp_path / "x", put(b"1"))
    assert len(no_waiting_for_disks) == 2


@pytest.mark.parametrize("old", ["", "a", "b"])
def test_repeatable_files_are_flushed_only_where_an_old_file_is_replaced(old, tmp_path, no_waiting_for_disks):
    if old:
        (tmp_path / old).write_bytes(b"old")
    with atomic.batch(overwrite=True, repeatable=True) as files:
        files.add(tmp_path / "a", put(b"1"))
        files.add(tmp_path / "b", put(b"2"))
    assert len(no_waiting_for_disks) == (3 if old else 0)  # both files and their folder: the old one may be the source
    assert (tmp_path / "a").read_bytes() + (tmp_path / "b").read_bytes() == b"12"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no forks")
def test_no_fork_of_a_process_takes_the_name_of_a_temporary_file_of_another(tmp_path):
    """Forks write to one folder, and what a killed one has left lies there yet."""
    disk.temporary_name(tmp_path)
    names = []
    for _ in range(2):
        reads, writes = os.pipe()
        pid = os.fork()
        if not pid:
            os.write(writes, disk.temporary_name(tmp_path).encode())
            os._exit(0)
        os.waitpid(pid, 0)
        names.append(os.read(reads, 4096).decode())
        os.close(reads)
        os.close(writes)
    assert len({disk.temporary_name(tmp_path), *names}) == 3


@pytest.mark.parametrize("link", [None, NotImplementedError], ids=["no os.link", "no follow_symlinks"])
def test_a_system_without_links_of_links_replaces_several_files(tmp_path, monkeypatch, link):
    """Windows has os.link without follow_symlinks; some systems have none."""
    real = os.link

    def of_windows(source, target, **options):
        if options:
            raise link("follow_symlinks unavailable on this platform")
        real(source, target)

    if link is None:
        monkeypatch.delattr(os, "link")
        monkeypatch.setattr(disk, "_BY_DESCRIPTOR", "/no/such/folder")
    else:
        monkeypatch.setattr(os, "link", of_windows)
        monkeypatch.setattr(disk, "_BY_DESCRIPTOR", "/no/such/folder")
    for name in "ab":
        (tmp_path / name).write_bytes(b"old")
    with atomic.batch(overwrite=True) as files:
        for name in "ab":
            files.add(tmp_path / name, put(b"new"))
    assert [(tmp_path / name).read_bytes() for name in "ab"] == [b"new", b"new"]
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]


def test_on_windows_a_file_that_is_open_is_replaced_once_it_is_closed(tmp_path, monkeypatch):
    tries, real = [], os.replace

    def open_twice(old, new):
        tries.append(new)
        if len(tries) < 3:
            raise PermissionError(errno.EACCES, "in use by another process")
        real(old, new)

    (tmp_path / "new").write_bytes(b"1")
    with monkeypatch.context() as patch:
        patch.setattr(os, "name", "nt")
        patch.setattr(os, "replace", open_twice)
        patch.setattr(disk.time, "sleep", lambda seconds: None)
        disk.replace(str(tmp_path / "new"), str(tmp_path / "old"))
    assert (len(tries), (tmp_path / "old").read_bytes()) == (3, b"1")
