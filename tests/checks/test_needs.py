"""The estimates of disk and memory fit what runs use."""

from __future__ import annotations

import pytest
import torch
from projects import make_project, run_project

from pivotune.pipeline.checks.disk import writes
from pivotune.pipeline.checks.memory import VALUE, count_needs
from pivotune.pipeline.checks.preflight import run_preflight
from pivotune.pipeline.models.load import load_model, skeleton
from pivotune.pipeline.recipe.load import load_recipe
from pivotune.pipeline.recipe.optimizers import OPTIMIZERS
from pivotune.pipeline.recipe.options import OptimizerOptions
from pivotune.pipeline.recipe.typed import options_of
from pivotune.pipeline.train.optimizers import make_optimizer

CPU = torch.device("cpu")


@pytest.mark.parametrize("family", ["sd1", "sdxl", "sd3"])
def test_a_skeleton_has_the_shapes_of_the_model(tmp_path, family):
    spec = load_recipe(make_project(tmp_path, family)).model
    empty, loaded_model = skeleton(spec), load_model(spec, CPU)
    for name, module in empty.pipe.components.items():
        loaded = getattr(loaded_model.pipe, name)
        assert {key: value.shape for key, value in module.named_parameters()} == {
            key: value.shape for key, value in loaded.named_parameters()
        }, name
    assert [one.key for one in empty.encoders] == [one.key for one in loaded_model.encoders]


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_the_state_of_an_optimizer_is_as_large_as_in_the_table(kind):
    if kind == "adamw8bit":
        pytest.importorskip("bitsandbytes")
    options = options_of(OptimizerOptions, kind=kind)
    weight = torch.randn(512, 512, requires_grad=True)
    optimizer = make_optimizer([weight], options, 1e-3)
    weight.grad = torch.randn_like(weight)
    optimizer.step()
    kept = sum(value.nbytes for value in optimizer.state[weight].values() if isinstance(value, torch.Tensor))
    assert kept / weight.numel() == pytest.approx(OPTIMIZERS[kind].state_bytes, abs=0.3)


PARTS = {
    "embeddings": {"train": ""},
    "all": {
        "train": "ema = 0.9\nlora = { rank = 4, parts = ['clip_l'] }\nfinetune = { parts = ['denoiser'] }",
        "model": "dtype = 'bfloat16'",
    },
    "best": {
        "train": "finetune = { parts = ['denoiser'] }",
        "more": "[validation]\nevery = '1 steps'\nshare = 0.3\n",
        "export": "from = 'best'",
    },
    "pivotal": {"stages": "[[stage]]\nkind = 'train'\nsteps = 1\nembeddings = false\nlora = { rank = 2 }"},
}


@pytest.mark.parametrize("kind", PARTS)
def test_checkpoints_and_exports_are_as_large_as_estimated(tmp_path, kind):
    recipe = load_recipe(make_project(tmp_path, **PARTS[kind]), ["samples.prompts=[]"])
    needs = count_needs(recipe, skeleton(recipe.model), {"<cat>": {"clip_l": 2}})
    estimates = {one.content: one for one in writes(recipe, needs, tmp_path / "run", 3, 4, 32)}
    run = run_project(recipe, tmp_path / "run").folder
    points = [path.stat().st_size for path in (run / "checkpoints").iterdir()]
    header = 1400 * 240  # names and shapes of the tensors, which are tiny here
    assert estimates["checkpoints"].least <= max(points)
    assert max(points) <= estimates["checkpoints"].least * 1.1 + header
    made = sum(path.stat().st_size for path in (run / "exports").rglob("*") if path.is_file())
    assert made <= estimates["exports"].most * 1.1 + 2 * header
    assert estimates["checkpoints"].least > 0
    assert run_preflight(recipe, tmp_path / "again", CPU).memory.least >= needs.model_bytes + VALUE * needs.embeddings
