"""Long work says how far it is where no bar can be drawn: in a log, and in a terminal without columns."""

import errno
import io
import os
from types import SimpleNamespace

import pytest
from projects import make_project, run_recipe

from pivotune.pipeline import progress as module
from pivotune.pipeline.progress import progress
from pivotune.pipeline.recipe.load import load_recipe


def worked(monkeypatch, seconds, total=400, initial=0):
    """Do the work; each part of it takes so many seconds."""
    now = [0.0]
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    with progress(total, "train", "step", initial=initial) as done:
        for number in range(initial, total):
            now[0] += seconds
            done(f"loss {number + 1}")


def test_a_log_has_a_line_each_tenth(monkeypatch, capsys):
    worked(monkeypatch, 2.0)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "train: 40 of 400 steps, 2 seconds each, 12:00 left, loss 40"
    assert [line.split()[1] for line in lines] == ["40", "80", "120", "160", "200", "240", "280", "320", "360"]


def test_a_log_has_no_line_before_half_a_minute_and_one_after_ten_minutes(monkeypatch, capsys):
    worked(monkeypatch, 0.25)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[1] for line in lines] == ["120", "240", "360"]
    assert lines[0] == "train: 120 of 400 steps, 4 a second, 01:10 left, loss 120"
    worked(monkeypatch, 50.0, initial=370)
    assert [line.split()[1] for line in capsys.readouterr().err.splitlines()] == ["382", "394"]


@pytest.mark.parametrize(("columns", "barred"), [(0, False), (80, True)])
def test_a_terminal_without_columns_gets_lines(monkeypatch, columns, barred):
    here, there = pytest.importorskip("pty", reason="this system has no such terminals").openpty()
    monkeypatch.setattr(module.os, "get_terminal_size", lambda _: os.terminal_size((columns, 24)))
    with os.fdopen(there, "w") as terminal:
        monkeypatch.setattr(module.sys, "stderr", terminal)
        worked(monkeypatch, 2.0, total=40)
        terminal.flush()
        output = os.read(here, 10_000)
    os.close(here)
    assert (b"\r" in output.replace(b"\r\n", b"\n")) == barred
    assert (b"train: 15 of 40 steps, 2 seconds each" in output) != barred


class Full(io.StringIO):
    def write(self, text):
        raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("stream", [None, Full()])
def test_a_log_that_takes_no_line_ends_no_work(monkeypatch, stream):
    monkeypatch.setattr(module.sys, "stderr", stream)
    worked(monkeypatch, 50.0, total=40)


def test_a_run_tells_in_a_log_how_far_its_training_is(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(module, "SECONDS", 0.0)
    recipe = load_recipe(make_project(tmp_path), ["data.cache_latents=off", "samples.prompts=[]"])
    run_recipe(recipe, out=tmp_path / "run", progress=lambda text: None, bar=True)
    output = capsys.readouterr().err
    assert "encode: 2 of 3 images, " in output
    assert [line.partition(" steps")[0] for line in output.splitlines() if line.startswith("train")] == [
        "train: 1 of 3", "train: 2 of 3"
    ]  # fmt: skip
    assert " left, loss " in output
