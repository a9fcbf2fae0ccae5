"""Hashes of large model files are kept between runs, and never used for a file that may have changed."""

import hashlib
import json
import os

import pytest

from pivotune.pipeline import files
from pivotune.pipeline.files import kept_sha256, model_hashes

OLD = 10**9 * 1_600_000_000  # nanoseconds: a file that nobody writes to any more


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The file of hashes; every file counts as large."""
    monkeypatch.setenv("PIVOTUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(files, "KEPT_FROM", 0)
    return tmp_path / "cache" / "model-hashes.json"


@pytest.fixture
def hashed(monkeypatch):
    """The names of the files whose bytes were hashed."""
    names, original = [], files.sha256
    monkeypatch.setattr(files, "sha256", lambda path: names.append(path.name) or original(path))
    return names


def write(path, content, time=OLD):
    path.write_bytes(content)
    os.utime(path, ns=(time, time))
    return hashlib.sha256(content).hexdigest()


def test_a_file_is_hashed_once(cache, hashed, tmp_path):
    digest = write(tmp_path / "a.safetensors", b"weights")
    write(tmp_path / "b.safetensors", b"others")
    assert model_hashes(tmp_path / "a.safetensors") == {"a.safetensors": digest}
    kept_sha256(tmp_path / "b.safetensors")
    assert [kept_sha256(tmp_path / "a.safetensors"), hashed] == [digest, ["a.safetensors", "b.safetensors"]]
    assert [path.name for path in cache.parent.iterdir()] == [cache.name]


def test_the_file_behind_a_link_counts(cache, hashed, tmp_path):
    digest = write(tmp_path / "blob", b"weights")
    (tmp_path / "a.safetensors").symlink_to("blob")
    kept_sha256(tmp_path / "blob")
    assert kept_sha256(tmp_path / "a.safetensors") == digest
    assert hashed == ["blob"]
    (tmp_path / "a.safetensors").unlink()
    other = write(tmp_path / "other", b"WEIGHTS")
    (tmp_path / "a.safetensors").symlink_to("other")
    assert kept_sha256(tmp_path / "a.safetensors") == other


@pytest.mark.parametrize("change", ["size", "time", "content with its time restored", "another file of its name"])
def test_a_file_that_may_have_changed_is_hashed_again(cache, tmp_path, change):
    path = tmp_path / "a.safetensors"
    write(path, b"weights")
    kept_sha256(path)
    if change == "size":
        new = write(path, b"weights and more")
    elif change == "time":
        new = write(path, b"WEIGHTS", OLD + 1)
    elif change == "content with its time restored":
        new = write(path, b"WEIGHTS")
    else:
        new = write(tmp_path / "new", b"WEIGHTS")
        os.replace(tmp_path / "new", path)
    assert kept_sha256(path) == new


@pytest.mark.parametrize("at", range(5))
def test_every_part_of_the_state_counts(cache, hashed, tmp_path, at):
    digest = write(tmp_path / "a.safetensors", b"weights")
    kept_sha256(tmp_path / "a.safetensors")
    entries = json.loads(cache.read_text("utf-8"))
    [entry] = entries.values()
    entry["state"][at] += 1
    cache.write_text(json.dumps(entries), "utf-8")
    assert kept_sha256(tmp_path / "a.safetensors") == digest
    assert len(hashed) == 2


STATED = '{"PATH": {"state": STATE, "sha256": %s}}'


@pytest.mark.parametrize("content", ["", "{", "[]", "\x00", '{"PATH": 1}', STATED % '"ab"', STATED % "7"])
def test_a_corrupt_cache_counts_as_none(cache, tmp_path, content):
    path = tmp_path / "a.safetensors"
    digest = write(path, b"weights")
    kept_sha256(path)
    state = json.dumps(json.loads(cache.read_text("utf-8"))[str(path)]["state"])
    cache.write_text(content.replace("PATH", str(path)).replace("STATE", state), "utf-8")
    assert kept_sha256(path) == digest
    assert json.loads(cache.read_text("utf-8"))[str(path)]["sha256"] == digest


def test_a_cache_that_cannot_be_written_is_none(cache, tmp_path):
    digest = write(tmp_path / "a.safetensors", b"weights")
    cache.parent.write_text("a file, not a folder", "utf-8")
    assert [kept_sha256(tmp_path / "a.safetensors") for _ in range(2)] == [digest, digest]


def test_a_file_just_written_is_not_kept(cache, tmp_path):
    (tmp_path / "a.safetensors").write_bytes(b"weights")  # another write may follow at the same time
    kept_sha256(tmp_path / "a.safetensors")
    assert not cache.exists()


def test_a_file_that_changes_while_it_is_hashed_is_not_kept(cache, tmp_path, monkeypatch):
    path, original = tmp_path / "a.safetensors", files.sha256
    write(path, b"weights")

    def hash_then_write(path):
        digest = original(path)
        path.write_bytes(b"more weights")
        return digest

    monkeypatch.setattr(files, "sha256", hash_then_write)
    kept_sha256(path)
    assert not cache.exists()


def test_files_that_are_gone_are_forgotten(cache, tmp_path):
    for name in ("a.safetensors", "b.safetensors"):
        write(tmp_path / name, b"weights")
    kept_sha256(tmp_path / "a.safetensors")
    (tmp_path / "a.safetensors").unlink()
    kept_sha256(tmp_path / "b.safetensors")
    assert list(json.loads(cache.read_text("utf-8"))) == [str(tmp_path / "b.safetensors")]


def test_small_files_are_not_kept(cache, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "KEPT_FROM", 100)
    digest = write(tmp_path / "config.json", b"{}")
    assert kept_sha256(tmp_path / "config.json") == digest
    assert not cache.exists()
