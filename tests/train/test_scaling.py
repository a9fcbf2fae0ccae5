"""Loss scaling of float16: a step whose gradient overflows is repeated."""

import json
import os
import signal

import pytest
import torch
from projects import make_project, run_project

from pivotune.pipeline.errors import StageError
from pivotune.pipeline.recipe.load import load_recipe
from pivotune.pipeline.run import training
from pivotune.pipeline.run.signals import Stopped
from pivotune.pipeline.train import loop
from pivotune.pipeline.train.embeddings import EmbeddingTrainer
from pivotune.pipeline.train.loss import FIRST, GROW_AFTER, LossScale, loss_scale


def test_the_scale_halves_at_an_overflow_and_doubles_after_many_good_steps():
    scale = loss_scale(torch.float16)
    assert (scale.value, loss_scale(torch.bfloat16).value, loss_scale(torch.float32).value) == (FIRST, 1.0, 1.0)
    assert scale.halve()
    assert scale.value == FIRST / 2
    for _ in range(GROW_AFTER):
        scale.keep()
    assert scale.value == FIRST
    assert not LossScale().halve()  # float32 has no overflow to shrink from
    while scale.halve():
        pass
    assert scale.value < 1


def test_one_infinite_gradient_is_repeated_with_half_the_scale(tmp_path, monkeypatch):
    """The model computes in float32; only the scale believes in float16, so both runs can be compared."""
    norm, scales = EmbeddingTrainer.gradient_norm, []

    def overflowing(trainer, scale):
        scales.append(scale)
        return float("inf") if len(scales) == 2 else norm(trainer, scale)

    monkeypatch.setattr(training, "loss_scale", lambda dtype: loss_scale(torch.float16))
    recipe = load_recipe(make_project(tmp_path))
    whole = run_project(recipe, tmp_path / "whole").folder
    monkeypatch.setattr(EmbeddingTrainer, "gradient_norm", overflowing)
    folder = run_project(recipe, tmp_path / "run").folder
    assert scales == [FIRST, FIRST, FIRST / 2, FIRST / 2]
    path = "exports/tiny_embeddings/cat.safetensors"
    assert (folder / path).read_bytes() == (whole / path).read_bytes()  # powers of two leave no trace
    text = (folder / "manifest.json").read_text("utf-8")
    assert text.count("repeated with a smaller loss scale") == 1


def test_a_step_that_no_scale_fixes_leaves_the_scale_unchanged(tmp_path, monkeypatch):
    norm, scales = EmbeddingTrainer.gradient_norm, []
    tried = [FIRST / 2**times for times in range(18)]  # down to the smallest

    def broken(trainer, scale):
        scales.append(scale)
        return float("nan") if len(scales) <= len(tried) else norm(trainer, scale)

    monkeypatch.setattr(training, "loss_scale", lambda dtype: loss_scale(torch.float16))
    monkeypatch.setattr(EmbeddingTrainer, "gradient_norm", broken)
    recipe = load_recipe(make_project(tmp_path, train="guard = { not_finite = 'warn' }"))
    folder = run_project(recipe, tmp_path / "run").folder
    assert scales == [*tried, FIRST, FIRST]
    assert "repeated with a smaller loss scale" not in (folder / "manifest.json").read_text("utf-8")


def test_a_resumed_run_has_the_scale_of_the_checkpoint(tmp_path, monkeypatch):
    norm, one_step = EmbeddingTrainer.gradient_norm, loop.one_step
    monkeypatch.setattr(training, "loss_scale", lambda dtype: loss_scale(torch.float16))
    recipe, rows = load_recipe(make_project(tmp_path)), []
    for name, stop in (("whole", None), ("run", 1)):
        scales = []

        def overflowing(trainer, scale, scales=scales):
            scales.append(scale)
            return float("inf") if len(scales) == 1 else norm(trainer, scale)

        def stopped(training, clock, stop=stop):
            if clock.step == stop:
                os.kill(os.getpid(), signal.SIGINT)
            return one_step(training, clock)

        monkeypatch.setattr(EmbeddingTrainer, "gradient_norm", overflowing)
        monkeypatch.setattr(loop, "one_step", stopped)
        if stop is not None:
            with pytest.raises(Stopped, match="after step 2 of 3"):
                run_project(recipe, tmp_path / name)
        folder = run_project(recipe, tmp_path / name).folder
        assert scales == [FIRST] + [FIRST / 2] * 3
        rows.append([json.loads(row) for row in (folder / "metrics.jsonl").read_text("utf-8").splitlines()])
        assert "1 step overflowed float16" in (folder / "manifest.json").read_text("utf-8")
    for row in (*rows[0], *rows[1]):
        del row["seconds"]
    assert rows[0] == rows[1]
    files = [tmp_path / name / "exports/tiny_embeddings/cat.safetensors" for name in ("whole", "run")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_gradient_that_never_becomes_finite_ends_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "loss_scale", lambda dtype: loss_scale(torch.float16))
    monkeypatch.setattr(EmbeddingTrainer, "gradient_norm", lambda trainer, scale: float("nan"))
    monkeypatch.setattr(loop, "gradients", lambda training, batches, step: (1.0, {"embeddings": float("nan")}))
    with pytest.raises(StageError, match="gradient of embeddings at step 1 is nan"):
        run_project(make_project(tmp_path), tmp_path / "run")


def test_a_float16_model_that_keeps_overflowing_is_an_error_with_another_dtype(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "gradients", lambda training, batches, step: (1.0, {"embeddings": float("inf")}))
    recipe = load_recipe(make_project(tmp_path, model='dtype = "float16"'))
    with pytest.raises(StageError, match=r"is inf, not a finite number; float16 holds .* try model.dtype = 'bfloat16'"):
        run_project(recipe, tmp_path / "run")
