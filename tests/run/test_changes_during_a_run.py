"""What may happen to a run's surroundings: disks that are full or read-only, and inputs that change after a stop."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from projects import make_project, run_project
from run.faults import OFTEN, at_step, mount_disk, private_disk
from run.killing import assert_same, child

from pivotune.pipeline.checks.recipe import checked_recipe
from pivotune.pipeline.errors import RecipeError, StageError
from pivotune.pipeline.recipe.load import load_recipe
from pivotune.pipeline.run import callbacks
from pivotune.pipeline.run.callbacks import Trackers
from pivotune.pipeline.run.signals import Stopped

CLASS = '[[concept]]\nimages = "disk/class"\nprior = true\ngenerate = { prompts = ["a ring"], count = 3, steps = 1 }\n'


def on_a_disk(place: Path, work: Callable[[], None]) -> None:
    """Do the work in a fork of this process that has a disk of its own at `place`; skip where the system gives none."""

    def with_disk() -> None:
        try:
            private_disk(place)
        except OSError:
            os._exit(3)
        work()

    place.mkdir()
    code = child(with_disk)
    if code == 3:
        pytest.skip("this system gives a process no disk of its own")
    assert code == 0


def fill(place: Path) -> Path:
    """Leave a disk no block; the file that takes them all."""
    path = place / "filling"
    with path.open("wb", buffering=0) as file, suppress(OSError):
        while file.write(bytes(2**16)):
            pass
    return path


@pytest.mark.slow
def test_class_images_on_a_full_disk_are_drawn_again(tmp_path):
    path = make_project(tmp_path, more=CLASS)
    disk = tmp_path / "disk"

    def starved() -> None:
        filling = fill(disk)
        with pytest.raises(StageError, match=r"No space left|the disk is full"):
            run_project(path, tmp_path / "run", force=True)
        filling.unlink()
        run_project(path, tmp_path / "run")
        assert [file.stat().st_size > 0 for file in sorted((disk / "class").iterdir())] == [True] * 6
        kept = {file.name: file.read_bytes() for file in (disk / "class").iterdir()}
        shutil.rmtree(disk / "class")
        run_project(path, tmp_path / "whole")
        assert {file.name: file.read_bytes() for file in (disk / "class").iterdir()} == kept
        assert_same(tmp_path / "run", tmp_path / "whole")

    on_a_disk(disk, starved)


@pytest.mark.slow
def test_a_tracker_on_a_full_disk_does_not_stop_the_run(tmp_path, monkeypatch):
    recipe = load_recipe(make_project(tmp_path, train='watch = { trackers = ["tensorboard"] }'), ["train.steps=12"])
    whole = run_project(recipe, tmp_path / "whole").folder
    disk, run = tmp_path / "disk", tmp_path / "run"

    def starved() -> None:
        at_step(monkeypatch, 1, lambda: fill(disk))
        run_project(recipe, run)
        warnings = json.loads((run / "manifest.json").read_text("utf-8"))["warnings"]
        assert [text.partition(" failed")[0] for text in warnings] == ["watch.trackers: tensorboard"], warnings
        exports = [{path.name: path.read_bytes() for path in (one / "exports").rglob("*.safetensors")}
                   for one in (run, whole)]  # fmt: skip
        assert exports[0] == exports[1]

    monkeypatch.setattr(callbacks, "Trackers", lambda names, title, folder, warn: Trackers(names, title, disk, warn))
    on_a_disk(disk, starved)


def test_a_folder_that_becomes_read_only_is_one_line_and_the_same_command_resumes(tmp_path, monkeypatch):
    recipe = make_project(tmp_path, more=OFTEN)
    whole, disk = run_project(recipe, tmp_path / "whole").folder, tmp_path / "disk"

    def starved() -> None:
        run, checkpoints = disk / "run", disk / "run/checkpoints"
        with monkeypatch.context() as patch:
            at_step(patch, 2, lambda: mount_disk(checkpoints, read_only=True))
            with pytest.raises(StageError, match=r"[Rr]ead-only"):
                run_project(recipe, run)
        assert ctypes.CDLL(None).umount(str(checkpoints).encode()) == 0
        mount_disk(disk, again=True, read_only=True)
        with pytest.raises(StageError, match=r"[Rr]ead-only"):
            run_project(recipe, run)
        mount_disk(disk, again=True)
        run_project(recipe, run)
        assert_same(run, whole)

    on_a_disk(disk, starved)


@pytest.fixture
def stopped(tmp_path, monkeypatch):
    """The recipe of a run that was stopped after its second step, in `run`."""
    recipe = make_project(tmp_path, more=OFTEN)
    with monkeypatch.context() as patch:
        at_step(patch, 1, lambda: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(Stopped):
            run_project(recipe, tmp_path / "run")
    return recipe


def as_the_command(path: Path, out: Path) -> None:
    """Check, then run."""
    run_project(checked_recipe(str(path), ())[0], out)


def contents_of(folder: Path) -> dict[str, bytes]:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != ".lock"]
    return {str(path): path.read_bytes() for path in files}


def test_a_changed_model_file_is_named_and_nothing_is_lost(tmp_path, stopped):
    weights = tmp_path / "model/unet/diffusion_pytorch_model.safetensors"
    data, before = weights.read_bytes(), contents_of(tmp_path / "run")
    weights.write_bytes(data[:-4] + b"\0\0\0\1")
    with pytest.raises(StageError, match=r"model: 1 file changed \(unet/diffusion_pytorch_model\.safetensors\)"):
        run_project(stopped, tmp_path / "run")
    shutil.move(tmp_path / "model", tmp_path / "moved")
    with pytest.raises((StageError, RecipeError), match="model"):
        run_project(stopped, tmp_path / "run")
    assert contents_of(tmp_path / "run") == before
    shutil.move(tmp_path / "moved", tmp_path / "model")
    weights.write_bytes(data)
    run_project(stopped, tmp_path / "run")
    run_project(stopped, tmp_path / "whole")
    assert_same(tmp_path / "run", tmp_path / "whole")


SLOW = pytest.mark.slow


@pytest.mark.parametrize("gone", ["one", pytest.param("all", marks=SLOW), pytest.param("a caption", marks=SLOW)])
def test_missing_images_are_named_and_nothing_is_lost(tmp_path, stopped, gone):
    there = [tmp_path / "images/1.png"] if gone == "one" else [tmp_path / "images/1.txt"]
    there = sorted((tmp_path / "images").glob("*.png")) if gone == "all" else there
    before = contents_of(tmp_path / "run")
    for path in there:
        path.rename(path.with_suffix(".away"))
    with pytest.raises((StageError, RecipeError), match=r"images"):
        as_the_command(stopped, tmp_path / "run")
    assert contents_of(tmp_path / "run") == before
    for path in there:
        path.with_suffix(".away").rename(path)
    run_project(stopped, tmp_path / "run")
    run_project(stopped, tmp_path / "whole")
    assert_same(tmp_path / "run", tmp_path / "whole")


@pytest.mark.slow
def test_a_model_that_changes_during_the_run_changes_nothing(tmp_path, monkeypatch):
    """It was read whole: no file of it is mapped into memory, where its new bytes would be trained on."""
    recipe = make_project(tmp_path, more=OFTEN)
    whole = run_project(recipe, tmp_path / "whole").folder

    def harm() -> None:
        for path in (tmp_path / "model").rglob("*.safetensors"):
            with path.open("r+b") as file:
                file.write(bytes(path.stat().st_size // 2))
                file.truncate()

    at_step(monkeypatch, 1, harm)
    run_project(recipe, tmp_path / "run")
    assert_same(tmp_path / "run", whole)


@pytest.mark.parametrize("how", ["gone", "replaced"])
def test_a_fine_tuned_model_has_the_loaded_tokenizers_even_if_their_folder_is_deleted(tmp_path, monkeypatch, how):
    recipe = make_project(tmp_path, train="finetune = {}", export='targets = []\nmodel = ["folder"]')
    (tmp_path / "model/tokenizer/notes.txt").write_text("not a tokenizer file", "utf-8")
    whole = run_project(recipe, tmp_path / "whole").folder

    def harm() -> None:
        if how == "gone":
            shutil.rmtree(tmp_path / "model")
        else:
            for path in (tmp_path / "model/tokenizer").rglob("*.*"):
                path.write_text("{}", "utf-8")

    at_step(monkeypatch, 1, harm)
    run_project(recipe, tmp_path / "run")
    assert_same(tmp_path / "run", whole)
    assert not (whole / "exports/tiny_model/tokenizer/notes.txt").exists()
