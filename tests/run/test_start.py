"""Which folder a run takes, and which unfinished one it goes on with."""

import json
from pathlib import Path
from typing import Any

import pytest

from pivotune.pipeline.errors import StageError
from pivotune.pipeline.lock import locked
from pivotune.pipeline.run.differences import Difference, input_differences
from pivotune.pipeline.run.start import begin_folder

INPUTS: dict[str, Any] = {
    "recipe": {"seed": 1, "stage": [{"kind": "train", "steps": 100}]},
    "model": {"sha256": {"unet": "aa"}, "path": "/here"},
    "data": {"files": {"a.png": "bb"}},
    "environment": {"torch": "2.13", "platform": "Linux-1"},
}


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def leave(folder: Path, status: str, **changes: Any) -> Path:
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text(json.dumps({"status": status, **INPUTS, **changes}), "utf-8")
    return folder


def begun(out: Path | None = None, fresh: bool = False) -> tuple[str, bool]:
    start = begin_folder("x", out, INPUTS, fresh=fresh)
    return start.folder.name, start.left is not None


def test_new_folders_count_up(tmp_path: Path) -> None:
    assert begun() == ("x", False)
    assert begun() == ("x-2", False)
    leave(tmp_path / "runs" / "x-3", "finished")
    assert begun() == ("x-4", False)


@pytest.mark.parametrize("status", ["running", "failed", "stopped"])
def test_an_unfinished_run_of_the_same_inputs_goes_on(tmp_path: Path, status: str) -> None:
    leave(tmp_path / "runs" / "x", "finished")
    leave(tmp_path / "runs" / "x-2", status)
    assert begun() == ("x-2", True)
    assert begun(tmp_path / "runs" / "x-2") == ("x-2", True)
    assert begun(fresh=True) == ("x-3", False)


def test_an_unfinished_run_of_other_inputs_is_left_alone(tmp_path: Path) -> None:
    leave(tmp_path / "runs" / "x", "running", data={"files": {"a.png": "cc"}})
    assert begun() == ("x-2", False)


def test_a_run_at_work_is_left_alone(tmp_path: Path) -> None:
    with locked(leave(tmp_path / "runs" / "x", "running")):
        assert begun() == ("x-2", False)


def test_what_differs_is_listed_when_the_folder_was_asked_for(tmp_path: Path) -> None:
    recipe = {"seed": 2, "stage": [{"kind": "train", "steps": 50}]}
    out = leave(tmp_path / "o", "stopped", recipe=recipe, environment={"torch": "2.12", "platform": "Linux-2"})
    with pytest.raises(StageError) as caught:
        begin_folder("x", out, INPUTS, fresh=False)
    lines = [line.strip() for line in str(caught.value).splitlines()]
    assert f"--from-checkpoint {out}" in lines[0]
    assert lines[1:] == [
        "recipe.seed: 2, now 1",
        "recipe.stage.1.steps: 50, now 100",
        "environment.torch: 2.12, now 2.13",
    ]


def test_finished_and_foreign_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="a finished run, which is never written over"):
        begun(leave(tmp_path / "done", "finished"))
    other = tmp_path / "mine"
    other.mkdir()
    (other / "holiday.jpg").write_bytes(b"x")
    with pytest.raises(StageError, match="holds files already"):
        begun(other)
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(StageError, match="cannot be made"):
        begun(tmp_path / "file")
    with pytest.raises(StageError, match="cannot be made"):
        begun(tmp_path / "file" / "below")


def test_a_run_that_was_killed_before_its_first_manifest_begins_again(tmp_path: Path) -> None:
    out = tmp_path / "o"
    out.mkdir()
    for name in (".lock", ".probe", ".manifest.json.part", "recipe.toml", "metrics.jsonl"):
        (out / name).write_bytes(b"{")
    assert begun(out) == ("o", False)


def test_names_for_people_are_no_difference() -> None:
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
