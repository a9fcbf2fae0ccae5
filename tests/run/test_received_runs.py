"""Run folders that others have made: nothing is read or written outside of them."""

import json
import ntpath
import os
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner
from projects import make_project, run_project

from pivotune.pipeline.cli.replay import replay
from pivotune.pipeline.errors import StageError
from pivotune.pipeline.run_folder import bounded_json, file_inside, is_inside


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("received")
    return run_project(make_project(folder), folder / "run").folder


def _changed(made: Path, place: Path, **recipe: object) -> Path:
    shutil.copytree(made, place)
    manifest = json.loads((place / "manifest.json").read_text("utf-8"))
    for key, value in recipe.items():
        if isinstance(value, dict):
            manifest["recipe"].setdefault(key, {}).update(value)
        else:
            manifest["recipe"][key] = value
    (place / "manifest.json").write_text(json.dumps(manifest), "utf-8")
    return place


@pytest.mark.parametrize("name", ["../../x", "/tmp/x", "a/b"])
def test_a_replay_refuses_a_name_outside_its_folder(made: Path, tmp_path: Path, name: str) -> None:
    result = CliRunner().invoke(replay, [str(_changed(made, tmp_path / "run", name=name))])
    assert isinstance(result.exception, StageError)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_replay_writes_only_into_its_folder_and_keeps_the_text_of_the_run(made: Path, tmp_path: Path) -> None:
    run = _changed(made, tmp_path / "run", data={"cache_latents": str(tmp_path / "elsewhere")})
    manifest = json.loads((run / "manifest.json").read_text("utf-8"))
    manifest["recipe_file"] = str(Path(manifest["recipe_file"]).with_name("secret"))
    Path(manifest["recipe_file"]).write_text("secret", "utf-8")
    (run / "manifest.json").write_text(json.dumps(manifest), "utf-8")
    CliRunner().invoke(replay, [str(run), "--out", str(tmp_path / "again")])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again", "run"]
    assert (tmp_path / "again" / "recipe.toml").read_bytes() == (run / "recipe.toml").read_bytes()


def test_a_replay_asks_for_moved_images(made: Path, tmp_path: Path) -> None:
    manifest = json.loads((made / "manifest.json").read_text("utf-8"))
    concepts = [{**one, "images": str(tmp_path / "gone")} for one in manifest["recipe"]["concept"]]
    result = CliRunner().invoke(replay, [str(_changed(made, tmp_path / "run", concept=concepts))])
    assert isinstance(result.exception, StageError)
    assert "--set" in str(result.exception)
    assert "\n" not in str(result.exception)


def test_a_run_of_another_operating_system_is_replayed_with_paths_of_this_one(made: Path, tmp_path: Path) -> None:
    manifest = json.loads((made / "manifest.json").read_text("utf-8"))
    recipe = manifest["recipe"]
    here = [f"model.base={recipe['model']['base']!r}", f"concept.images={recipe['concept'][0]['images']!r}"]
    elsewhere = [{**one, "images": "C:\\Users\\me\\images"} for one in recipe["concept"]]
    run = _changed(made, tmp_path / "run", concept=elsewhere, model={"base": "C:\\Users\\me\\model"})
    manifest = json.loads((run / "manifest.json").read_text("utf-8"))
    manifest["recipe_file"] = "C:\\Users\\me\\recipe.toml"
    (run / "manifest.json").write_text(json.dumps(manifest), "utf-8")
    result = CliRunner().invoke(replay, [str(run)])
    assert "--set" in str(result.exception)
    result = CliRunner().invoke(replay, [str(run), *(part for one in here for part in ("--set", one))])
    assert "second run" in result.output or "The same" in result.output, result.exception
    assert "--set" not in result.output


def test_only_plain_files_inside_a_folder_are_accepted(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "deep").mkdir(parents=True)
    (run / "deep" / "a").write_text("a", "utf-8")
    (tmp_path / "secret").write_text("s", "utf-8")
    (run / "link").symlink_to(tmp_path)
    assert file_inside(run, "deep/a") == run / "deep" / "a"
    for given in ("../secret", "/etc/passwd", "link/secret", "deep", "deep/../deep/a", "", ".", 5, None, "a\0", "x\\y"):
        with pytest.raises(StageError):
            file_inside(run, given)
    assert not is_inside("a//b")


def test_no_part_of_a_path_leads_to_another_drive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os.path, "splitdrive", ntpath.splitdrive)  # as on Windows, where D:/run/images / "C:a" is C:a
    for given in ("C:a", "C:/a", "images/C:a", "images/c:/a"):
        assert not is_inside(given)
    assert is_inside("images/a.png")


@pytest.mark.parametrize("text", ["[" * 900 + "]" * 900, "NaN", "1" * 400, "1e999", '"\\ud800"', "[" * 10**5, "{"])
def test_json_is_bounded(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        bounded_json(text)
