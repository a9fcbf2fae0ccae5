"""Which folder a run takes, and which unfinished one it resumes."""

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
from run.unfinished import INPUTS, leave

from pivotune.pipeline.errors import StageError
from pivotune.pipeline.lock import folder_lock
from pivotune.pipeline.run.diff import Difference, input_differences
from pivotune.pipeline.run.start import create_run_folder, report_start, run_folder_lock


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pivotune.pipeline.records._schema_error", lambda manifest: "")  # these are not whole
    monkeypatch.chdir(tmp_path)


def started(out: Path | None = None, fresh: bool = False) -> tuple[str, bool]:
    start = create_run_folder("x", out, INPUTS, fresh=fresh)
    return start.folder.name, start.unfinished is not None


def test_new_folders_count_up(tmp_path: Path) -> None:
    assert started() == ("x", False)
    assert started() == ("x-2", False)
    leave(tmp_path / "runs" / "x-3", "finished")
    assert started() == ("x-4", False)
    (tmp_path / "runs" / "x-5").symlink_to(tmp_path / "gone")
    assert started() == ("x-6", False)


@pytest.mark.parametrize("status", ["running", "failed", "stopped"])
def test_an_unfinished_run_with_the_same_inputs_is_resumed(tmp_path: Path, status: str) -> None:
    leave(tmp_path / "runs" / "x", "finished")
    leave(tmp_path / "runs" / "x-2", status)
    assert started() == ("x-2", True)
    assert started(tmp_path / "runs" / "x-2") == ("x-2", True)
    assert started(fresh=True) == ("x-3", False)


def test_an_unfinished_run_with_other_inputs_is_not_resumed(tmp_path: Path) -> None:
    leave(tmp_path / "runs" / "x", "running", data={"files": {"a.png": "cc"}})
    assert started() == ("x-2", False)


def test_a_run_in_progress_is_not_resumed(tmp_path: Path) -> None:
    with folder_lock(leave(tmp_path / "runs" / "x", "running")):
        assert started() == ("x-2", False)


def test_unfinished_runs_that_are_not_resumed_are_named_in_one_line(tmp_path: Path) -> None:
    """Hours of training must not start over in another folder without a warning."""
    runs = tmp_path / "runs"
    leave(runs / "x", "running", data={"files": {"a.png": "cc"}})
    (leave(runs / "x-2", "running") / "manifest.json").write_text("{", "utf-8")
    leave(runs / "x-3", "running")
    leave(runs / "x-4", "finished", environment={})
    leave(runs / "x-5", "running", environment={})  # without a checkpoint nothing of it is lost
    for name in ("x", "x-2", "x-3", "x-4"):
        (runs / name / "checkpoints").mkdir()
        (runs / name / "checkpoints/stage-001-step-000000001.safetensors").write_bytes(b"")
    messages: list[str] = []
    with folder_lock(runs / "x-3"):
        report_start(create_run_folder("x", None, INPUTS, fresh=False), None, messages.append)
    last = runs / "x-3"
    assert messages == [f"warning: not resuming the unfinished run {last} and 2 more: --out {last} shows why"]
    messages.clear()
    (runs / "x-6").rmdir()
    report_start(create_run_folder("x", None, INPUTS, fresh=False), None, messages.append)
    assert messages == [f"resuming {last}, from step 1: it has no usable checkpoint"]


@pytest.mark.parametrize("found", ["new", "unfinished"])
def test_a_run_that_another_process_has_finished_before_the_lock_is_not_resumed(tmp_path: Path, found) -> None:
    out = tmp_path / "o"
    if found == "unfinished":
        leave(out, "running")
    start = create_run_folder("x", out, INPUTS, fresh=False)
    with run_folder_lock(start):
        pass
    (out / "manifest.json").write_text(json.dumps({"status": "finished", **INPUTS}), "utf-8")
    with pytest.raises(StageError, match="another process has used this folder"), run_folder_lock(start):
        pass


def test_differences_are_listed_for_the_folder_of_out(tmp_path: Path) -> None:
    recipe = {"seed": 2, "stage": [{"kind": "train", "steps": 50}]}
    out = leave(tmp_path / "o", "stopped", recipe=recipe, environment={"torch": "2.12", "platform": "Linux-2"})
    with pytest.raises(StageError) as caught:
        create_run_folder("x", out, INPUTS, fresh=False)
    lines = [line.strip() for line in str(caught.value).splitlines()]
    assert f"--from-checkpoint {out}" in lines[0]
    assert lines[1:] == [
        "recipe.seed: 2, now 1",
        "recipe.stage.1.steps: 50, now 100",
        "environment.torch: 2.12, now 2.13",
    ]


def test_a_folder_that_was_on_a_full_disk_can_be_used_later(tmp_path: Path, monkeypatch) -> None:
    out, true = tmp_path / "o", Path.open

    class Full:
        def __enter__(self) -> Any:
            return self

        def __exit__(self, *_: object) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # when the byte is brought to the disk

        def write(self, data: bytes) -> None:
            pass

    def full(path: Path, *arguments: Any, **options: Any) -> Any:
        true(path, *arguments, **options).close()
        return Full()

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", full)
        with pytest.raises(StageError, match="No space left"):
            started(out)
    assert list(out.iterdir()) == []
    assert started(out) == ("o", False)


def test_finished_and_foreign_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="contains a finished run, which is not overwritten"):
        started(leave(tmp_path / "done", "finished"))
    other = tmp_path / "mine"
    other.mkdir()
    (other / "holiday.jpg").write_bytes(b"x")
    with pytest.raises(StageError, match="contains files, but no run"):
        started(other)
    (other / "link").symlink_to(tmp_path)  # no run's, so no message asks to delete it
    with pytest.raises(StageError, match="contains files, but no run"):
        started(other)
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(StageError, match="cannot be created"):
        started(tmp_path / "file")
    with pytest.raises(StageError, match="cannot be created"):
        started(tmp_path / "file" / "below")


def test_an_unreadable_manifest_is_named_with_the_reason(tmp_path: Path) -> None:
    (leave(tmp_path / "cut", "failed") / "manifest.json").write_text('{"status": ', "utf-8")
    with pytest.raises(StageError, match=r"no run that can be resumed \(.*manifest\.json: not a manifest"):
        started(tmp_path / "cut")


def test_a_run_that_was_killed_before_its_first_manifest_starts_again(tmp_path: Path) -> None:
    out = tmp_path / "o"
    out.mkdir()
    for name in (".lock", ".probe", ".manifest.json.part", "recipe.toml", "metrics.jsonl"):
        (out / name).write_bytes(b"{")
    (out / ".lock").write_text("123\nthere\n", "utf-8")
    assert started(out) == ("o", False)


@pytest.mark.parametrize("name", ["recipe.toml", "metrics.jsonl", ".probe", "my.txt"])
@pytest.mark.parametrize("lock", [None, "{", "my own notes\n"])
def test_a_folder_with_files_of_the_user_is_not_used(tmp_path: Path, name: str, lock: str | None) -> None:
    out = tmp_path / "o"
    out.mkdir()
    (out / name).write_text("mine", "utf-8")
    if lock is not None:
        (out / ".lock").write_text(lock, "utf-8")
    with pytest.raises(StageError, match="contains files, but no run"):
        started(out)
    assert (out / name).read_text("utf-8") == "mine"


@pytest.mark.parametrize("name", ["exports", "recipe.toml", "images/deep.png", ".probe", "saves"])
def test_a_link_in_a_runs_folder_is_refused(tmp_path: Path, name: str) -> None:
    folder = leave(tmp_path / "runs" / "x", "running")
    (tmp_path / "mine").mkdir()
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).symlink_to(tmp_path / "mine")
    for out in (None, folder):
        with pytest.raises(StageError, match="is a link; remove it"):
            started(out)
    assert (tmp_path / "mine").is_dir()


def test_pipes_and_second_names_in_a_runs_folder_are_refused(tmp_path: Path) -> None:
    folder = leave(tmp_path / "runs" / "x", "running")
    (tmp_path / "mine").write_text("mine", "utf-8")
    os.link(tmp_path / "mine", folder / "metrics.jsonl")
    with pytest.raises(StageError, match="hard link"):
        started(folder)
    os.replace(folder / "metrics.jsonl", folder / "other")  # both are one file, which is no harm where it is replaced
    (folder / "metrics.jsonl").unlink(missing_ok=True)
    os.mkfifo(folder / "pipe")
    with pytest.raises(StageError, match="a pipe or a device"):
        started(folder)


def test_descriptions_are_no_difference() -> None:
    other = {**INPUTS, "model": {"sha256": {"unet": "aa"}, "path": "/there"}}
    assert input_differences(INPUTS, other) == []
    [gone] = input_differences(INPUTS, {**INPUTS, "model": {"sha256": {}}})
    assert gone == Difference("model.sha256.unet", "aa", None)
    assert str(gone) == "model.sha256.unet: aa, now nothing"
    assert [gone.within(place) for place in ("model", "model.sha256.unet", "model.sha", "recipe")] == [
        True,
        True,
        False,
        False,
    ]
