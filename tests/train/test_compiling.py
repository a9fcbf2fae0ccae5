"""torch.compile does not change results."""

import json

import pytest
import torch
from projects import make_project, run_project
from torch._dynamo.exc import TorchDynamoException

from pivotune.pipeline.errors import StageError
from pivotune.pipeline.recipe.load import load_recipe
from pivotune.pipeline.train import loop
from pivotune.pipeline.train.compute import compiled


@pytest.mark.slow
def test_a_compiled_run_has_the_same_metrics(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "compiled"))  # not what a kill left half written
    recipe = make_project(tmp_path, train="lora = [{ rank = 2 }]")
    sets = ["train.batch_size=3"]  # all batches of one shape: each shape is compiled separately, in minutes
    runs = [
        run_project(load_recipe(recipe, [*sets, f"train.compile={on}"]), tmp_path / on).folder
        for on in ("false", "true")
    ]
    rows = [[json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()] for run in runs]
    for plain, fast in zip(*rows, strict=True):
        for key in ("loss", "gradient_norm"):
            assert fast[key] == pytest.approx(plain[key], rel=1e-4)


def test_the_module_is_compiled_only_within_the_context():
    module = torch.nn.Linear(2, 2)
    with compiled(module, True):
        assert module._compiled_call_impl is not None
    assert module._compiled_call_impl is None
    with compiled(module, False):
        assert module._compiled_call_impl is None


def test_a_model_that_cannot_be_compiled_is_an_error_with_a_hint(tmp_path, monkeypatch):
    def broken(training, clock):
        raise TorchDynamoException("no compiler was found\nand much more")

    monkeypatch.setattr(loop, "one_step", broken)
    recipe = load_recipe(make_project(tmp_path), ["train.compile=true"])
    with pytest.raises(StageError, match=r"cannot compile the model here \(no compiler was found\); remove it, or"):
        run_project(recipe, tmp_path / "run")
