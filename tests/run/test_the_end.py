"""A run that is stopped between its last export and its report is completed by the same command."""

import json
from pathlib import Path

import pytest
from projects import make_project, run_project

from pivotune.pipeline.errors import StageError
from pivotune.pipeline.export import last_good
from pivotune.pipeline.run import noted


def _tree(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("at", ["write_report", "remove_finished", "forget_last_good", "write_json"])
def test_the_same_command_completes_an_end_that_was_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    path = make_project(tmp_path)
    whole = run_project(path, tmp_path / "whole").folder
    calls = 0

    def full(*arguments: object, **options: object) -> None:
        nonlocal calls
        calls += 1
        if at == "write_json" and calls < 2:  # the second one is that of `finished`
            return real(*arguments, **options)
        raise OSError(28, "No space left on device")

    real = getattr(noted, at)
    facts = noted.complete

    def complete(folder: Path, manifest: dict) -> None:
        manifest["finished"] = {"words": 1, "removed": True}
        monkeypatch.setattr(noted, at, full)
        facts(folder, manifest)

    with monkeypatch.context() as patch:
        patch.setattr(noted, "complete", complete)
        with pytest.raises(StageError, match="the same command"):
            run_project(path, tmp_path / "run")
    monkeypatch.setattr(noted, at, real)
    assert json.loads((tmp_path / "run" / "manifest.json").read_text("utf-8"))["status"] == "ending"
    (tmp_path / "run" / "finished").mkdir(exist_ok=True)  # as a kill may leave them
    (tmp_path / "run" / last_good.FOLDER).mkdir(exist_ok=True)
    result = run_project(path, tmp_path / "run")
    assert result.report.is_file()
    assert json.loads((tmp_path / "run" / "manifest.json").read_text("utf-8"))["status"] == "finished"
    assert _tree(tmp_path / "run") == _tree(whole)
    assert not [name for name in ("finished", last_good.FOLDER) if (tmp_path / "run" / name).exists()]
    with pytest.raises(StageError, match="holds a finished run"):
        run_project(path, tmp_path / "run")
