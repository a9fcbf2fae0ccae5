"""Estimates of time: the numbers they rest on, how they scale, and that they need no weights."""

import dataclasses

import pytest
import torch
from models.folders import CPU, spec_of
from projects import make_project
from tiny import tiny_unet

from pivotune.converters.families import families
from pivotune.pipeline.models import estimate
from pivotune.pipeline.models.estimate import counted_work, estimate_recipe, estimate_seconds, measured_speed
from pivotune.pipeline.recipe.load import load_recipe

SPEED = 1e12
PLAIN = {
    "steps": 10, "batch_size": 1, "resolution": None, "lora": False, "checkpointing": False, "device": CPU,
}  # fmt: skip


@pytest.fixture
def machine(monkeypatch):
    """A machine of known speed that starts kernels in no time."""
    monkeypatch.setattr(estimate, "measured_speed", lambda device, dtype: SPEED)
    monkeypatch.setattr(estimate, "measured_start", lambda device: 0.0)


def guess(name="sd1", base="some/model", **changes):
    return estimate_seconds(spec_of(base, name), families()[name], **PLAIN | changes)


@pytest.mark.parametrize(("name", "work"), [("sd1", 1.72), ("sd2", 4.97), ("sdxl", 14.67)])
def test_the_work_of_a_step_over_the_speed_of_the_machine(machine, name, work):
    told = guess(name)
    assert told.low == pytest.approx(10 * work / estimate.EFFICIENCY[1])
    assert told.high == pytest.approx(10 * work / estimate.EFFICIENCY[0])
    assert told.basis.startswith(f"{work:.3g} TFLOP a step; CPU does 1 TFLOP a second in float32")


@pytest.mark.parametrize(
    ("changes", "factor"),
    [
        ({"steps": 30}, 3), ({"batch_size": 4}, 4), ({"resolution": 1024}, 4), ({"resolution": 256}, 1 / 4),
        ({"resolution": 512}, 1), ({"lora": True}, 1.01), ({"checkpointing": True}, 1.36),
    ],
)  # fmt: skip
def test_it_scales(machine, changes, factor):
    plain, told = guess(), guess(**changes)
    assert told.low == pytest.approx(factor * plain.low)
    assert told.high == pytest.approx(factor * plain.high)


def test_small_models_are_bound_by_the_start_of_their_kernels(monkeypatch):
    monkeypatch.setattr(estimate, "measured_speed", lambda device, dtype: 1e18)
    monkeypatch.setattr(estimate, "measured_start", lambda device: 1e-6)
    assert guess().low == pytest.approx(10 * estimate.STARTS[0] * 1e-6)
    assert guess().high == pytest.approx(10 * estimate.STARTS[1] * 1e-6, rel=0.01)
    assert guess(lora=True).low > 2 * guess().low


@pytest.mark.parametrize("broken", ["text_encoder", "unet", "vae"])
def test_no_weights_are_read(machine, sd1_folder, broken):
    for path in (sd1_folder / broken).glob("*.safetensors"):
        path.unlink()
    assert 0 < guess(base=sd1_folder).low < guess().low


def test_a_model_of_another_size_than_its_family_is_counted(machine, sdxl_folder):
    work = counted_work(dict(tiny_unet(64).config))
    told = guess("sdxl", base=sdxl_folder)
    assert told.low == pytest.approx(10 * work / SPEED / estimate.EFFICIENCY[1], rel=0.05)
    assert guess("sdxl", base=sdxl_folder, resolution=32).low == pytest.approx(4 * told.low)


def test_four_times_the_pixels_are_some_four_times_the_work():
    config = dict(tiny_unet(32).config)
    wide = config | {"sample_size": 2 * config["sample_size"]}
    assert 3.5 < counted_work(wide) / counted_work(config) < 6


def test_the_speed_of_this_machine_is_measured_quickly():
    measured_speed.cache_clear()
    assert 1e7 < measured_speed(CPU, torch.float32) < 1e16
    assert 1e-8 < estimate.measured_start(CPU) < 1e-2


def test_a_recipe_is_its_train_stages_and_its_pictures(machine, tmp_path):
    recipe = load_recipe(make_project(tmp_path))
    family = families()["sd1"]
    told = estimate_recipe(recipe, family, CPU)
    silent = dataclasses.replace(recipe, samples=dataclasses.replace(recipe.samples, count=0))
    [train] = [stage.options for stage in recipe.stages if stage.kind == "train"]
    alone = estimate_seconds(recipe.model, family, **PLAIN | {"steps": train["steps"], "batch_size": 2})
    assert estimate_recipe(silent, family, CPU).low == pytest.approx(alone.low)
    drawn = 2 * estimate.FORWARD * 2 * len(recipe.samples.prompts) * recipe.samples.count * recipe.samples.steps
    assert told.low - alone.low == pytest.approx(drawn * alone.low / (train["steps"] * 2))
    assert told.high > told.low
