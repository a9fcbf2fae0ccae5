"""Run folders with links, with files of the user's own, and with metrics that changed: nothing is lost or copied."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from projects import make_project, run_project

from pivotune.pipeline.checks import preflight as look
from pivotune.pipeline.errors import StageError
from pivotune.pipeline.recipe.load import load_recipe
from pivotune.pipeline.records import read_manifest, require_logged_lines
from pivotune.pipeline.run.checkpoints import read_checkpoint, write_checkpoint
from pivotune.pipeline.run.signals import Stopped
from pivotune.pipeline.train import loop

OFTEN = '[checkpoint]\nevery = "1 steps"'


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A recipe, and a run of it that was stopped after its second step."""
    folder = tmp_path_factory.mktemp("stopped")
    recipe = make_project(folder, more=OFTEN)
    one_step = loop.one_step

    def interrupted(training, clock):
        if clock.step == 2:
            raise Stopped("asked to")
        return one_step(training, clock)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "one_step", interrupted)
        with pytest.raises(Stopped):
            run_project(recipe, folder / "run")
    return recipe, folder / "run"


@pytest.fixture
def received(stopped: tuple[Path, Path], tmp_path: Path) -> tuple[Path, Path]:
    """A copy of that run, beside which lie files of the user's own."""
    shutil.copytree(stopped[1], tmp_path / "run")
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "thesis.txt").write_text("mine", "utf-8")
    (tmp_path / ".bashrc").write_text("mine", "utf-8")
    return stopped[0], tmp_path / "run"


def unharmed(folder: Path) -> bool:
    files = (folder / "docs" / "thesis.txt", folder / ".bashrc")
    return all(path.read_text("utf-8") == "mine" for path in files)


@pytest.mark.parametrize(
    "name", ["exports", "images", "finished", "last-good", "saves", "latents", "tracking", ".last-good.old"]
)
def test_a_link_to_a_folder_is_neither_deleted_nor_written_through(received, tmp_path, monkeypatch, name) -> None:
    recipe, run = received
    shutil.rmtree(run / name, ignore_errors=True)
    (run / name).symlink_to("../docs")
    monkeypatch.setattr(look, "try_save", lambda place: pytest.fail("a folder was tried before the links were seen"))
    with pytest.raises(StageError, match="is a link"):
        run_project(recipe, run)
    assert unharmed(tmp_path)
    assert sorted(path.name for path in (tmp_path / "docs").iterdir()) == ["thesis.txt"]


@pytest.mark.parametrize("name", ["recipe.toml", "report.html", ".recipe.toml.part", "checkpoints/x"])
def test_a_link_to_a_file_is_not_written_through(received, tmp_path, name) -> None:
    recipe, run = received
    (run / name).unlink(missing_ok=True)
    (run / name).symlink_to(tmp_path / ".bashrc")
    with pytest.raises(StageError, match="is a link"):
        run_project(recipe, run)
    assert unharmed(tmp_path)


def test_a_second_name_of_a_file_is_not_written(received, tmp_path) -> None:
    recipe, run = received
    images = [path for path in (run / "images").iterdir() if path.suffix == ".png"]
    for path in (run / ".probe", run / "report.html", run / f".report.html.{os.getpid()}", *images):
        path.unlink(missing_ok=True)
        os.link(tmp_path / ".bashrc", path)
    run_project(recipe, run)
    assert unharmed(tmp_path)


def test_a_pipe_in_a_run_folder_does_not_hang(received, tmp_path) -> None:
    recipe, run = received
    os.mkfifo(run / "exports.txt")
    with pytest.raises(StageError, match="a pipe"):
        run_project(recipe, run)


def test_a_run_folder_that_is_reached_through_a_link_resumes(received, tmp_path) -> None:
    recipe, run = received
    (tmp_path / "link").symlink_to(run)
    assert run_project(recipe, tmp_path / "link").report.is_file()


@pytest.mark.parametrize("path", ["../../.bashrc", "../.bashrc", "/etc/hostname", "images/../../.bashrc"])
def test_no_file_outside_the_source_is_copied(received, tmp_path, path) -> None:
    recipe, run = received
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text("utf-8").splitlines()]
    lines[-1]["images"] = [{"path": path, "prompt": "x", "seed": 0, "embedding": None}]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    new = tmp_path / "a" / "b"
    with pytest.raises(StageError) as raised:
        run_project(load_recipe(recipe, ["train.steps=4"]), new, source=run)
    assert "\n" not in str(raised.value).strip() or "metrics" in str(raised.value)
    assert unharmed(tmp_path)
    copied = [found for found in new.rglob("*") if found.is_file() and b"mine" in found.read_bytes()]
    assert copied == []


@pytest.mark.parametrize("harm", ["deleted", "shorter", "flipped"])
def test_metrics_that_changed_since_the_checkpoint_are_noticed(received, harm) -> None:
    recipe, run = received
    path = run / "metrics.jsonl"
    data = bytearray(path.read_bytes())
    if harm == "deleted":
        path.unlink()
    else:
        data[10] ^= 1
        path.write_bytes(data[:20] if harm == "shorter" else data)
    with pytest.raises(StageError, match=r"metrics\.jsonl.*--fresh|--fresh.*metrics\.jsonl"):
        run_project(recipe, run)


@pytest.mark.parametrize("name", ["recipe.toml", "metrics.jsonl", ".lock", "notes.txt"])
def test_a_folder_of_the_user_is_not_changed(stopped, tmp_path, name) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / name).write_text("mine", "utf-8")
    with pytest.raises(StageError, match="choose another --out"):
        run_project(stopped[0], tmp_path / "mine")
    assert [(path.name, path.read_text("utf-8")) for path in (tmp_path / "mine").iterdir()] == [(name, "mine")]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"stage": 99}, "stage 100 of the recipe is no train stage"),
        ({"stage": 0}, "stage 1 of the recipe is no train stage"),
        ({"step": 1_000_000}, "stage 3 has 3 steps; the checkpoint is of step 1000000"),
        ({"step": 0}, "stage 3 has 3 steps; the checkpoint is of step 0"),
        ({"rows": []}, "its stages are none"),
        ({"rows": "other"}, "its stages are export, inject, train"),
    ],
)
def test_a_checkpoint_that_does_not_fit_the_recipe_is_refused(received, change, expected) -> None:
    recipe, run = received
    paths = sorted((run / "checkpoints").iterdir())
    point = read_checkpoint(paths[-1])
    for path in paths:
        path.unlink()
    facts = point.facts
    if "rows" in change:
        rows = (
            [] if change["rows"] == [] else [{**facts["run"]["rows"][0], "kind": "export"}, *facts["run"]["rows"][1:]]
        )
        change = {"facts": {**facts, "run": {**facts["run"], "rows": rows}}}
    write_checkpoint(run, replace(point, **change))
    with pytest.raises(StageError, match=f"does not fit the recipe.*{expected}.*--fresh"):
        run_project(recipe, run)


def test_resuming_replaces_interrupted_exports_and_keeps_files_of_the_user(received) -> None:
    recipe, run = received
    exports = run / "exports"
    (exports / "a1111").mkdir(parents=True)
    (exports / "tiny_embeddings").mkdir()
    own = [exports / "notes.txt", exports / "a1111" / "mine.safetensors"]
    for path in own:
        path.write_text("mine", "utf-8")
    interrupted = exports / "tiny_embeddings" / "cat.safetensors"
    interrupted.write_bytes(b"half")
    run_project(recipe, run)
    assert [path.read_text("utf-8") for path in own] == ["mine", "mine"]
    assert interrupted.read_bytes() != b"half"


@pytest.mark.parametrize("name", ["manifest.json", "metrics.jsonl"])
def test_a_link_in_place_of_a_record_is_called_a_link(received, tmp_path, name) -> None:
    _, run = received
    recorded = read_checkpoint(max((run / "checkpoints").iterdir())).facts["run"]["metrics"]
    (run / name).rename(tmp_path / "elsewhere")
    (run / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StageError, match="a link, which is not followed"):
        read_manifest(run) if name == "manifest.json" else require_logged_lines(run / name, recorded)
