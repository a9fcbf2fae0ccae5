"""What trains nothing or goes astray: a warning for each embedding, and the end of the run where the recipe says so."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from projects import make_project, run_project
from run.killing import made_files

from pivotune.pipeline.cli.main import pivotune
from pivotune.pipeline.errors import StageError
from pivotune.pipeline.recipe.load import load_recipe
from pivotune.pipeline.recipe.options import GuardOptions
from pivotune.pipeline.recipe.typed import options_of
from pivotune.pipeline.train import loop
from pivotune.pipeline.train.guard import MOST, Guard
from pivotune.pipeline.train.packing import pack, unpack


def warnings_of(tmp_path: Path, guard: str, train: str = "", *sets: str) -> list[str]:
    """The warnings of a run with a table `guard`, without those of the samples."""
    path = make_project(tmp_path, train=f"{train}\n[stage.guard]\n{guard}")
    run = run_project(load_recipe(path, ["train.steps=8", *sets]), tmp_path / "run").folder
    return json.loads((run / "manifest.json").read_text("utf-8"))["warnings"]


STILL = ("frozen_vectors_after = 3", "schedule = { kind = 'linear', end = 0.0 }\nwarmup_steps = 7")


def test_a_normal_run_has_no_warnings(tmp_path):
    assert warnings_of(tmp_path, "frozen_vectors_after = 2\nstalled_lr_after = 2") == []


def freeze_vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps too small for float32: the vectors stay bit for bit."""
    from pivotune.pipeline.train.row_optimizers import LazyAdamW

    monkeypatch.setattr(LazyAdamW, "step", lambda self, index, rows, gradient, rate: rows.detach().clone())


def test_frozen_vectors_are_a_warning_once(tmp_path, monkeypatch):
    freeze_vectors(monkeypatch)
    assert warnings_of(tmp_path, "frozen_vectors_after = 3") == [
        "vector 1 of '<cat>' in clip_l did not change in 3 of its steps: learning_rate is too small"
    ]


def test_frozen_vectors_stop_the_run_with_policy_stop(tmp_path, monkeypatch):
    freeze_vectors(monkeypatch)
    with pytest.raises(StageError, match=r"did not change in 3 of its steps.*guard.frozen_vectors = 'stop'"):
        warnings_of(tmp_path, "frozen_vectors_after = 3\nfrozen_vectors = 'stop'")
    assert (tmp_path / "run/last-good").is_dir()
    assert len((tmp_path / "run/metrics.jsonl").read_text("utf-8").splitlines()) == 3


ASKED = {
    "frozen_vectors": ("frozen_vectors_after = 3", "did not change in 3 of its steps"),
    "norm": ("norm_band = { high = 1.5 }", "times the vocabulary's median"),
    "stalled_lr": ("stalled_lr_after = 3\nfrozen_vectors = 'off'", "has been 0 for 3 steps"),
    "not_finite": ("", "the loss at step 3 is nan"),
}


@pytest.mark.parametrize(
    "kind", ["norm", *(pytest.param(one, marks=pytest.mark.slow) for one in ASKED if one != "norm")]
)
def test_each_check_stops_with_a_checkpoint_and_resumes_with_policy_warn(tmp_path, monkeypatch, kind):
    """The command ends with 1, again and again, until the recipe asks otherwise; then nothing of it is repeated."""
    guard, text = ASKED[kind]
    sets = {"norm": ["train.learning_rate=1.0"], "stalled_lr": ["train.learning_rate={ clip_l = 0 }"]}.get(kind, [])
    sets += ["train.steps=8", "checkpoint.every='never'"]
    if kind == "frozen_vectors":
        freeze_vectors(monkeypatch)
    if kind == "not_finite":
        break_steps(monkeypatch, 2)
    path = make_project(tmp_path, train=f"[stage.guard]\n{guard}")
    warns, run = [*sets, f"train.guard.{kind}='warn'"], tmp_path / "run"
    whole = run_project(load_recipe(path, warns), tmp_path / "whole").folder
    options = ["run", str(path), "--out", str(run), *(f"--set={one}" for one in [*sets, f"train.guard.{kind}='stop'"])]
    for _ in range(2):
        shown = CliRunner().invoke(pivotune, options)
        assert isinstance(shown.exception, StageError), shown.output  # which the command ends with exit code 1
        assert text in str(shown.exception)
    (point,) = (run / "checkpoints").iterdir()
    assert point.name == f"stage-003-step-{1 if kind == 'norm' else 2 if kind == 'not_finite' else 3:09}.safetensors"
    after = run_project(load_recipe(path, warns), tmp_path / "after", source=run).folder
    assert made_files(after) == made_files(whole)
    warnings = [json.loads((one / "manifest.json").read_text("utf-8"))["warnings"] for one in (whole, after)]
    assert len([one for one in warnings[0] if text in one]) == 1
    assert len([one for one in warnings[1] if text in one]) == int(kind == "not_finite")  # the others stopped the run


def test_frozen_vectors_are_not_reported_with_policy_off(tmp_path, monkeypatch):
    freeze_vectors(monkeypatch)
    assert warnings_of(tmp_path, "frozen_vectors = 'off'\nfrozen_vectors_after = 3") == []


def test_a_norm_outside_its_band_is_a_warning_once(tmp_path):
    (text,) = warnings_of(tmp_path, "norm_band = { low = 0.1, high = 1.5 }", "", "train.learning_rate=1.0")
    assert text.startswith("the norm of vector ")
    assert "times the vocabulary's median; preserve_norm limits norms" in text


def test_a_norm_outside_its_band_stops_the_run_with_policy_stop(tmp_path):
    with pytest.raises(StageError, match=r"times the vocabulary's median.*guard.norm = 'stop'"):
        warnings_of(tmp_path, "norm = 'stop'\nnorm_band = { high = 1.5 }", "", "train.learning_rate=1.0")


def test_a_preserved_norm_is_no_warning(tmp_path):
    sets = ("train.learning_rate=1.0", "train.preserve_norm=median")
    assert warnings_of(tmp_path, "norm_band = { low = 0.9, high = 1.5 }", "", *sets) == []


def test_a_learning_rate_of_zero_is_a_warning_once(tmp_path):
    texts = warnings_of(
        tmp_path, "stalled_lr_after = 3\nfrozen_vectors = 'off'", "", "train.learning_rate={ clip_l = 0 }"
    )
    assert texts == ["the learning rate of '<cat>' has been 0 for 3 steps: nothing is trained"]


def test_a_stalled_prodigy_is_a_warning_for_embeddings_and_lora(tmp_path, monkeypatch):
    pytest.importorskip("prodigyopt")
    train = (
        "optimizer = { kind = 'prodigy', d0 = 1e-6, d_coef = 1e-9 }\n"
        "[[stage.lora]]\nrank = 2\nlearning_rate = 1.0\noptimizer = { kind = 'prodigy', d_coef = 1e-9 }"
    )
    texts = warnings_of(tmp_path, "stalled_lr_after = 4\nfrozen_vectors = 'off'", train, "train.learning_rate=1.0")
    assert len(texts) == 2
    assert all("has not grown above 1e-06" in text for text in texts)
    assert "'<cat>'" in texts[0] + texts[1]
    assert "'lora.denoiser'" in texts[0] + texts[1]


def test_a_growing_prodigy_learning_rate_is_no_warning(tmp_path):
    pytest.importorskip("prodigyopt")
    train = "optimizer = { kind = 'prodigy' }"
    assert warnings_of(tmp_path, "stalled_lr_after = 8\nfrozen_vectors = 'off'", train, "train.learning_rate=1.0") == []


def break_steps(monkeypatch: pytest.MonkeyPatch, *numbers: int) -> None:
    whole = loop.batch_loss

    def broken(training: Any, batch: Any, number: int, *, grad_text: bool) -> Any:
        loss = whole(training, batch, number, grad_text=grad_text)
        return loss * float("nan") if number in numbers else loss

    monkeypatch.setattr(loop, "batch_loss", broken)


def test_a_loss_that_is_not_finite_skips_the_step_with_policy_warn(tmp_path, monkeypatch):
    break_steps(monkeypatch, 2, 4)
    assert warnings_of(tmp_path, "not_finite = 'warn'") == [
        "the loss at step 3 is nan, not a finite number: the step is skipped",
        "skipped 2 steps because loss or gradient was not finite",
    ]
    rows = [json.loads(row) for row in (tmp_path / "run/metrics.jsonl").read_text("utf-8").splitlines()]
    assert [row["loss"] is None for row in rows] == [False, False, True, False, True, False, False, False]
    assert rows[2]["embeddings"]["<cat>"]["clip_l"]["distance"] == rows[1]["embeddings"]["<cat>"]["clip_l"]["distance"]
    assert (tmp_path / "run/report.html").is_file()


def test_a_loss_that_is_not_finite_stops_the_run_by_default(tmp_path, monkeypatch):
    break_steps(monkeypatch, 2)
    with pytest.raises(StageError, match="the loss at step 3 is nan"):
        warnings_of(tmp_path, "frozen_vectors = 'warn'")


def test_further_warnings_of_a_kind_are_counted() -> None:
    texts: list[str] = []
    guard = Guard(options_of(GuardOptions), texts.append)
    for number in range(MOST + 5):
        guard.report("norm", f"embedding-{number}", f"embedding-{number} is long")
        guard.report("norm", f"embedding-{number}", f"embedding-{number} is long")
    guard.close()
    assert len(texts) == MOST + 1
    assert texts[-1] == "and 5 more embeddings whose norms left the band"


def test_a_restored_guard_repeats_no_warning_and_keeps_its_counts() -> None:
    options = options_of(GuardOptions, stalled_lr_after=3, frozen_vectors_after=3)
    texts: list[str] = []
    first, second = Guard(options, texts.append), Guard(options, texts.append)
    rows = torch.ones(2, 4)

    def look(guard: Guard) -> None:
        from pivotune.pipeline.embeddings.norms import NormStatistics

        guard.check_rows(
            "clip_l", 2, torch.tensor([0, 1]), torch.tensor([True, False]), rows, rows, ("a", "b"),
            {"a": range(1), "b": range(1, 2)}, NormStatistics(2.0, 2.0, 1.0, 3.0),
        )  # fmt: skip
        guard.check_learning_rate("a", 0.0, None)

    for _ in range(2):
        look(first)
    assert texts == []
    second.restore(unpack(pack(first.state())))
    look(second)
    assert len(texts) == 2
    third = Guard(options, texts.append)
    third.restore(unpack(pack(second.state())))
    look(third)
    assert len(texts) == 2


def test_a_restored_guard_uses_the_present_policies() -> None:
    options = options_of(GuardOptions, norm="stop", frozen_vectors="stop")
    first = Guard(options, collect := [].append)
    first.report("norm", "<a>", "too long")
    with pytest.raises(StageError, match="too long"):
        first.raise_if_stopping()
    second = Guard(replace(options, norm="warn"), collect)
    second.restore(first.state())
    second.raise_if_stopping()
    second.report("frozen_vectors", "<a>", "is frozen")
    assert second.stops
    with pytest.raises(StageError, match="is frozen"):
        second.raise_if_stopping()


def test_the_error_lists_all_reasons_to_stop(tmp_path, monkeypatch) -> None:
    pytest.importorskip("prodigyopt")
    freeze_vectors(monkeypatch)
    guard = "frozen_vectors = 'stop'\nstalled_lr = 'stop'\nfrozen_vectors_after = 2\nstalled_lr_after = 2"
    with pytest.raises(
        StageError, match=r"'<cat>' in clip_l did not change.*; and Prodigy's learning rate.*'lora"
    ) as raised:
        warnings_of(
            tmp_path, guard, "lora = { rank = 2, learning_rate = 1.0, optimizer = { kind = 'prodigy', d_coef = 1e-9 } }"
        )
    assert "(guard.frozen_vectors = guard.stalled_lr = 'stop'; fix it and restart" in str(raised.value)
    assert "or with guard.frozen_vectors = guard.stalled_lr = 'warn' and --from-checkpoint" in str(raised.value)
    path, run = tmp_path / "recipe.toml", tmp_path / "run"
    with pytest.raises(StageError) as again:  # from the checkpoint: the same
        run_project(load_recipe(path, ["train.steps=8"]), run)
    assert str(again.value) == str(raised.value)
    with pytest.raises(StageError, match=r"Prodigy's learning rate.*'lora\.denoiser'.*\(guard\.stalled_lr = 'stop'"):
        run_project(
            load_recipe(path, ["train.steps=8", "train.guard.frozen_vectors='warn'"]), tmp_path / "after", source=run
        )


def test_bands_and_policies_are_checked(tmp_path):
    from pivotune.pipeline.checks.recipe import check_recipe

    path = make_project(tmp_path, train="[stage.guard]\nnorm = 'wran'\nnot_finite = 'off'")
    texts = [problem.text for problem in check_recipe(path).problems]
    assert texts == [
        "unknown value 'wran'; did you mean 'warn'?",
        "unknown value 'off'; known: stop, warn",
    ]  # fmt: skip
