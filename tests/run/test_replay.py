"""`pivotune replay RUN` as people type it: no --out, from any folder."""

import os
import signal
from itertools import count
from types import SimpleNamespace

import pytest
from click.testing import CliRunner
from projects import make_project, run_project

from pivotune.pipeline.cli.replay import replay
from pivotune.pipeline.errors import StageError
from pivotune.pipeline.recipe.load import load_recipe
from pivotune.pipeline.train import loop


@pytest.mark.parametrize("train", ["", "lora = { rank = 2 }"])
def test_replay_without_out_writes_next_to_the_run(tmp_path, monkeypatch, train):
    """Files are named after the run, so the second run must have the first one's name."""
    run_project(make_project(tmp_path, train=train), tmp_path / "kept" / "first")
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    for name in ("first-replay", "first-replay-2") if not train else ("first-replay",):
        result = CliRunner().invoke(replay, ["../kept/first"])
        assert result.exit_code == 0, result.output
        assert result.output.splitlines()[-1].startswith("Identical: 3 steps and ")
        assert result.output.splitlines()[-1].endswith(str(tmp_path / "kept" / name))
        assert (tmp_path / "kept" / name / "exports" / "tiny_embeddings" / "cat.safetensors").is_file()
    assert list(here.iterdir()) == []


@pytest.mark.parametrize("changed", ["train.learning_rate=5e-3", "train.steps=5"])
def test_a_run_from_a_checkpoint_is_replayed_from_it(tmp_path, changed):
    path = make_project(tmp_path, train="schedule = 'cosine'")
    source = run_project(path, tmp_path / "source").folder
    run = run_project(load_recipe(path, [changed]), tmp_path / "run", source=source).folder
    result = CliRunner().invoke(replay, [str(run)])
    assert result.exit_code == 0, result.output

    (checkpoint,) = (source / "checkpoints").iterdir()
    checkpoint.unlink()
    gone = CliRunner().invoke(replay, [str(run)])
    if "steps" in changed:  # it continued from the source's last step: all of them are made here, on one schedule
        assert "different: metrics, step 2 of stage 3" in gone.output
    else:
        assert isinstance(gone.exception, StageError)
        assert str(checkpoint) in str(gone.exception)


def test_images_and_saves_at_timed_intervals_are_no_difference(tmp_path, monkeypatch):
    train = "watch = { sample_every = '5 seconds', prompts = ['<cat>'] }\nsave = { every = '5 seconds' }"
    with monkeypatch.context() as patch:
        clock = count(0, 10)
        patch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: next(clock)))
        run = run_project(make_project(tmp_path, train=train), tmp_path / "run").folder
    assert list(run.glob("saves/*"))
    with monkeypatch.context() as patch:
        patch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: 0))
        result = CliRunner().invoke(replay, [str(run)])
    assert not list(tmp_path.glob("run-replay/saves/*"))
    assert result.exit_code == 0, result.output
    assert "not compared: the steps of images and saves, which depend on time" in result.output


def test_a_stopped_replay_says_that_it_cannot_be_resumed(tmp_path, monkeypatch):
    run = run_project(make_project(tmp_path), tmp_path / "run").folder
    one_step = loop.one_step

    def asked(training, clock):
        os.kill(os.getpid(), signal.SIGTERM)
        return one_step(training, clock)

    monkeypatch.setattr(loop, "one_step", asked)
    result = CliRunner().invoke(replay, [str(run)])
    assert str(result.exception or result.output).endswith(
        "after step 1 of 3 (stage 3); a replay cannot be resumed: the same command starts over in another folder"
    )
