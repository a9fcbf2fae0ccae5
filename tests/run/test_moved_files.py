"""A run resumes where its folder, its images or its model have been moved: they are compared by content."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
from projects import make_project, run_project

from pivotune.converters.safetensors_file import read
from pivotune.pipeline.errors import StageError
from pivotune.pipeline.recipe.load import load_recipe
from pivotune.pipeline.run.diff import input_differences
from pivotune.pipeline.run.signals import Stopped
from pivotune.pipeline.train import loop


@pytest.fixture
def stopped(tmp_path: Path) -> tuple[Path, Path, Path]:
    """A recipe, a whole run of it, and one that was stopped after its second step."""
    recipe = make_project(tmp_path / "home")
    whole, run = run_project(recipe, tmp_path / "whole").folder, tmp_path / "run"
    one_step = loop.one_step

    def interrupted(training, clock):
        if clock.step + 1 == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return one_step(training, clock)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "one_step", interrupted)
        with pytest.raises(Stopped):
            run_project(recipe, run)
    return recipe, whole, run


def test_a_run_resumes_after_everything_was_moved(tmp_path: Path, stopped: tuple[Path, Path, Path]) -> None:
    recipe, whole, run = stopped
    (tmp_path / "home").rename(tmp_path / "new home")
    (tmp_path / "new home" / "model").rename(tmp_path / "the model")
    (tmp_path / "new home" / "images").rename(tmp_path / "the images")
    run.rename(tmp_path / "moved run")
    moved = [f"model.base='{tmp_path / 'the model'}'", f"concept.images='{tmp_path / 'the images'}'"]
    result = run_project(load_recipe(tmp_path / "new home" / recipe.name, moved), tmp_path / "moved run")
    manifest = json.loads((result.folder / "manifest.json").read_text("utf-8"))
    assert len(manifest["resumed"]) == 1
    for path in sorted((whole / "exports").rglob("*.safetensors")):  # their metadata names the model as the recipe does
        other = result.folder / path.relative_to(whole)
        assert {n: bytes(t.data) for n, t in read(other)[0].items()} == {
            n: bytes(t.data) for n, t in read(path)[0].items()
        }
    assert (result.folder / "metrics.jsonl").stat().st_size > 0


def test_an_image_that_changed_while_moved_is_named(tmp_path: Path, stopped: tuple[Path, Path, Path]) -> None:
    recipe, _, run = stopped
    shutil.copytree(recipe.parent / "images", tmp_path / "images")
    shutil.copyfile(tmp_path / "images" / "1.png", tmp_path / "images" / "2.png")
    changed = load_recipe(recipe, [f"concept.images='{tmp_path / 'images'}'"])
    with pytest.raises(StageError, match=r"unfinished run with other inputs(.|\n)*images"):
        run_project(changed, run)


def inputs(images: str, files: dict[str, str], counts: list[int], captions: str = "beside") -> dict:
    concept = {"images": images, "captions": captions}
    return {"recipe": {"concept": [concept]}, "data": {"files": files, "concepts": counts}, "model": {}}


def test_moved_paths_are_no_difference() -> None:
    before = inputs("/a", {"/a/1.png": "x", "/a/2.png": "y"}, [2])
    assert input_differences(before, inputs("D:\\b", {"D:\\b\\1.png": "x", "D:\\b\\2.png": "y"}, [2])) == []
    others = {
        "another order": inputs("/b", {"/b/2.png": "y", "/b/1.png": "x"}, [2]),
        "another hash": inputs("/b", {"/b/1.png": "x", "/b/2.png": "z"}, [2]),
        "another name": inputs("/b", {"/b/1.png": "x", "/b/3.png": "y"}, [2]),
        "shared out otherwise": inputs("/b", {"/b/1.png": "x", "/b/2.png": "y"}, [1]),
        "another kind of captions": inputs("/b", {"/b/1.png": "x", "/b/2.png": "y"}, [2], "file-name"),
    }
    for what, now in others.items():
        assert input_differences(before, now), what
