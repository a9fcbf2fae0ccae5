"""The end of a run can be interrupted anywhere: the same command completes it, and trains nothing again."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
from projects import make_project, run_project
from run.killing import assert_same, child

from pivotune.pipeline.errors import StageError
from pivotune.pipeline.run import outcome as finishing

EARLY = 'stop_after = "2 steps"'  # so that there is a finished/ to clean up
STEPS = ("write_json", "write_report", "remove_finished", "remove_last_good")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A recipe, and a run of it that nothing has interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    recipe = make_project(folder, embedding=EARLY)
    return recipe, run_project(recipe, folder / "run").folder


def status(run: Path) -> str:
    return str(json.loads((run / "manifest.json").read_text("utf-8"))["status"])


def hit(monkeypatch: pytest.MonkeyPatch, name: str, call: int, *, after: bool, blow) -> None:
    """Let a step of the end meet a `blow`, before or after it has done its work, at one of its calls."""
    true, calls = getattr(finishing, name), []

    def step(*arguments: object) -> object:
        calls.append(1)
        if len(calls) == call and not after:
            blow()
        result = true(*arguments)
        if len(calls) == call and after:
            blow()
        return result

    monkeypatch.setattr(finishing, name, step)


def completed(monkeypatch: pytest.MonkeyPatch, recipe: Path, run: Path) -> None:
    """The same command once more, which must not train."""
    with monkeypatch.context() as patch:
        patch.setattr("pivotune.pipeline.run.runner.execute", lambda *_: pytest.fail("the run was run again"))
        result = run_project(recipe, run)
    assert result.report.is_file()
    assert "Proved" in result.summary


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(("name", "call"), [*((name, 1) for name in STEPS), ("write_json", 2)])
def test_a_kill_at_any_point_while_finishing(tmp_path, monkeypatch, whole, name, call, after) -> None:
    recipe, run = whole[0], tmp_path / "run"
    with monkeypatch.context() as patch:
        hit(patch, name, call, after=after, blow=lambda: os.kill(os.getpid(), signal.SIGKILL))
        assert child(lambda: run_project(recipe, run)) == -signal.SIGKILL
    if (name, call, after) == ("write_json", 1, False):
        assert status(run) == "running"  # the exports were not known to be verified yet: the end is made again
        run_project(recipe, run)
    elif (name, call, after) == ("write_json", 2, True):
        assert status(run) == "finished"
    else:
        assert status(run) == "finishing"
        completed(monkeypatch, recipe, run)
    assert status(run) == "finished"
    assert not (run / "finished").exists()
    assert not (run / "last-good").exists()
    assert_same(run, whole[1])


@pytest.mark.parametrize(("name", "call"), [("write_report", 1), ("write_json", 2)])
def test_a_full_disk_while_finishing(tmp_path, monkeypatch, whole, name, call) -> None:
    def full() -> None:
        raise OSError(28, "No space left on device")

    recipe, run = whole[0], tmp_path / "run"
    with monkeypatch.context() as patch:
        hit(patch, name, call, after=False, blow=full)
        with pytest.raises(StageError, match=r"disk is full.*the same command writes the report"):
            run_project(recipe, run)
    completed(monkeypatch, recipe, run)
    assert_same(run, whole[1])
    with pytest.raises(StageError, match="a finished run"):
        run_project(recipe, run)


def test_an_export_that_changed_in_the_meantime_is_named(tmp_path, monkeypatch, whole) -> None:
    recipe, run = whole[0], tmp_path / "run"
    with monkeypatch.context() as patch:
        hit(patch, "write_report", 1, after=False, blow=lambda: os.kill(os.getpid(), signal.SIGKILL))
        assert child(lambda: run_project(recipe, run)) == -signal.SIGKILL
    (run / "exports/tiny_embeddings/cat.safetensors").write_bytes(b"other")
    with pytest.raises(StageError, match=r"deleted or changed .*: exports/tiny_embeddings/cat.*restore them.*--fresh"):
        run_project(recipe, run)
    assert status(run) == "finishing"
