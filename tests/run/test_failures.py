"""Failures from outside: one clear line, nothing that was saved is lost, and the same command resumes."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from projects import make_project, run_project
from run.faults import OFTEN, at_step, mount_disk, private_disk
from run.killing import child, made_files
from run.launching import launched

from pivotune.pipeline.cli.options import echo_progress
from pivotune.pipeline.errors import StageError
from pivotune.pipeline.models.received import model_error
from pivotune.pipeline.recipe.load import load_recipe
from pivotune.pipeline.recipe.model import ModelSpec, Recipe
from pivotune.pipeline.run import runner
from pivotune.pipeline.run.outcome import machine_message
from pivotune.pipeline.run.signals import Stopped, catch_signals
from pivotune.pipeline.system_errors import FULL_MEMORY, system_error_text
from pivotune.pipeline.train import loop


@pytest.mark.parametrize("how", ["changed", "gone"])
def test_a_changed_or_missing_image_stops_the_run_and_is_named(tmp_path, monkeypatch, how):
    recipe = make_project(tmp_path, train="", more=OFTEN)
    whole = run_project(recipe, tmp_path / "whole").folder
    images = {path: path.read_bytes() for path in (tmp_path / "images").glob("*.png")}

    def harm() -> None:
        for path in images:
            path.unlink() if how == "gone" else path.write_bytes(images[path] + b"more")

    with monkeypatch.context() as patch:
        at_step(patch, 1, harm)
        with pytest.raises(StageError, match=r"\d\.png: (the image or its mask has changed|not a readable image)"):
            run_project(recipe, tmp_path / "run")
    for path, data in images.items():
        path.write_bytes(data)
    run_project(recipe, tmp_path / "run")
    assert made_files(tmp_path / "run") == made_files(whole)


def test_a_caption_that_changes_before_it_is_read_is_named(tmp_path, monkeypatch):
    recipe, begin = make_project(tmp_path), runner.create_run_folder

    def late(*args: Any, **options: Any) -> Any:
        (tmp_path / "images/1.txt").write_text("another <cat>", "utf-8")
        return begin(*args, **options)

    monkeypatch.setattr(runner, "create_run_folder", late)
    with pytest.raises(StageError, match=r"changed since the run started: images/1\.txt"):
        run_project(recipe, tmp_path / "run")


def test_a_run_folder_deleted_during_the_run_is_reported(tmp_path, monkeypatch):
    at_step(monkeypatch, 1, lambda: shutil.rmtree(tmp_path / "run"))
    with pytest.raises(StageError, match="run: the run folder was deleted or moved during the run"):
        run_project(make_project(tmp_path, more=OFTEN), tmp_path / "run")


@pytest.mark.parametrize("by", [-1e8, 1e8])
def test_a_clock_that_is_set_back_or_jumps_ahead_changes_nothing(tmp_path, monkeypatch, by):
    recipe = make_project(tmp_path, embedding='stop_after = "1 hours"', more='[checkpoint]\nevery = "1 hours"')
    whole, now = run_project(recipe, tmp_path / "whole").folder, time.time
    at_step(monkeypatch, 1, lambda: monkeypatch.setattr(time, "time", lambda: now() + by))
    run = run_project(recipe, tmp_path / "run").folder
    assert made_files(run) == made_files(whole)
    assert len(list((run / "checkpoints").iterdir())) == 1


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="this system has no SIGHUP")
def test_a_closed_terminal_stops_with_a_checkpoint_and_nohup_does_not(tmp_path, monkeypatch):
    recipe = make_project(tmp_path, more=OFTEN)
    gone = open("/dev/full", "w", buffering=1)  # noqa: SIM115 (every write to it fails)
    monkeypatch.setattr(sys, "stderr", gone)
    echo_progress("nobody hears this")
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    try:
        with monkeypatch.context() as patch:
            at_step(patch, 1, lambda: os.kill(os.getpid(), signal.SIGHUP))
            with pytest.raises(Stopped, match="Stopped by SIGHUP after step 2 of 3"):
                run_project(recipe, tmp_path / "run")
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        with catch_signals(echo_progress) as asked:
            os.kill(os.getpid(), signal.SIGHUP)
            assert asked.name is None
    finally:
        signal.signal(signal.SIGHUP, before)


def test_full_memory_is_one_line_and_the_same_command_resumes(tmp_path, monkeypatch):
    recipe = make_project(tmp_path, train="lora = { rank = 2 }", more=OFTEN)
    with monkeypatch.context() as patch:
        at_step(patch, 1, lambda: torch.empty(2**50, dtype=torch.uint8))  # more than any machine has
        with pytest.raises(StageError, match="out of memory") as raised:
            run_project(recipe, tmp_path / "run")
    assert len(str(raised.value).splitlines()) == 1
    run_project(recipe, tmp_path / "run")
    run_project(recipe, tmp_path / "whole")
    assert made_files(tmp_path / "run") == made_files(tmp_path / "whole")


@pytest.mark.slow  # at few amounts a library's own code gives way before Python hears of it
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="this system does not tell a process its size")
def test_a_process_short_of_memory_prints_one_line_and_the_same_command_resumes(tmp_path):
    """Also of a LoRA, and while images are drawn: starved at 22 amounts from 4 to 256 MB it said this and no more."""
    recipe = large(make_project(tmp_path, train="lora = { rank = 2 }\nwatch = { sample_every = '1 steps' }"))
    log = tmp_path / "log.txt"

    def starved() -> None:
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + 2**24, used + 2**24))
        try:
            run_project(recipe, tmp_path / "run")
        except StageError as error:
            log.write_text(str(error), "utf-8")

    assert child(starved) == 0
    text = log.read_text("utf-8")
    assert "out of memory" in text
    assert len(text.splitlines()) == 1
    run_project(recipe, tmp_path / "run")
    run_project(recipe, tmp_path / "whole")
    assert made_files(tmp_path / "run") == made_files(tmp_path / "whole")


def test_full_memory_before_the_model_is_loaded_is_reported():
    error = model_error(
        ModelSpec("x", "sd1", "float32", None, None, None), RuntimeError("can't start new thread"), " (in text_encoder)"
    )
    assert str(error) == FULL_MEMORY


def large(path: Path) -> Recipe:
    return load_recipe(path, ["train.resolution=192", "samples.prompts=['a <cat>']"])


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "x"), "x: the disk is full; free some space"),
        (OSError(errno.EROFS, "Read-only file system", "x"), "x: the file system has become read-only"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), FULL_MEMORY),
        (MemoryError(), FULL_MEMORY),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), FULL_MEMORY),
        (RuntimeError("could not create a primitive"), FULL_MEMORY),
        (RuntimeError("MPS backend out of memory"), "out of device memory"),
    ],
)
def test_errors_of_the_machine_name_what_to_do(error, text):
    assert str(machine_message(error)).startswith(text)
    if isinstance(error, (OSError, MemoryError)):
        assert system_error_text(error).startswith(text)


def test_a_bug_keeps_its_traceback():
    assert machine_message(RuntimeError("mat1 and mat2 shapes cannot be multiplied")) is None


def test_a_full_disk_at_any_point_is_one_line_and_the_same_command_resumes(tmp_path):
    recipe = make_project(tmp_path, train="lora = { rank = 2 }", more=OFTEN)
    whole, disk = run_project(recipe, tmp_path / "whole").folder, tmp_path / "disk"
    size = sum(-(-path.stat().st_size // 4096) * 4096 for path in whole.rglob("*") if path.is_file())
    disk.mkdir()

    def starved() -> None:
        try:
            private_disk(disk)
        except OSError:
            os._exit(3)
        for share in (0.1, 0.45, 0.75):
            mount_disk(disk, f"{int(size * share)}", again=True)
            out = disk / f"run-{share}"
            with pytest.raises(StageError, match=r"No space left|the disk is full"):
                run_project(recipe, out, force=True)
            mount_disk(disk, again=True)
            run_project(recipe, out)
            assert made_files(out) == made_files(whole)
            shutil.rmtree(out)

    code = child(starved)
    if code == 3:
        pytest.skip("this system gives a process no disk of its own")
    assert code == 0


@pytest.mark.slow
@pytest.mark.parametrize("killed", [[0], [1], [0, 1]])
def test_killed_processes_of_a_launched_run_change_no_byte(tmp_path, monkeypatch, killed):
    recipe = make_project(tmp_path, train="lora = { rank = 2, dropout = 0.2 }", more=OFTEN)
    assert launched(tmp_path, lambda rank: run_project(recipe, tmp_path / "whole")).codes == [0, 0]
    one_step = loop.one_step

    def dying(training: Any, clock: Any) -> Any:
        if clock.step == 2 and training.processes.index in killed:
            os.kill(os.getpid(), signal.SIGKILL)
        return one_step(training, clock)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "one_step", dying)
        ended = launched(tmp_path, lambda rank: run_project(recipe, tmp_path / "run"))
    assert [code != 0 for code in ended.codes] == [True, True]
    again = launched(tmp_path, lambda rank: run_project(recipe, tmp_path / "run"))
    assert again.codes == [0, 0], again.outputs
    assert made_files(tmp_path / "run") == made_files(tmp_path / "whole")
