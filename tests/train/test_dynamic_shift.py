"""Dynamic shift: training has the scheduler's noise levels for the size of the images."""

import math

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from train.objectives import objective_with

from pivotune.pipeline.checks.recipe import check_recipe
from pivotune.pipeline.errors import StageError

PLAIN, DYNAMIC = FlowMatchEulerDiscreteScheduler(shift=3.0), FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)


def levels(scheduler, latents: torch.Tensor, **timesteps) -> torch.Tensor:
    """The noise levels of a batch of latents that are all 1, from the input of the denoiser and its target."""
    asked = objective_with(scheduler, timesteps=timesteps).sample(latents, 3, 0)
    torch.testing.assert_close(asked.noisy, latents + asked.timesteps.reshape(-1, 1, 1, 1) / 1000 * asked.target)
    return asked.timesteps / 1000


@pytest.mark.parametrize("side", [16, 64, 128])
def test_dynamic_shift_trains_at_the_noise_levels_of_sampling(side):
    latents = torch.ones(64, 4, side, side)
    plain = levels(PLAIN, latents, shift=1.0)
    mu = calculate_shift(side * side // 4)
    wanted = DYNAMIC.time_shift(mu, 1.0, plain)
    torch.testing.assert_close(levels(DYNAMIC, latents), wanted, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(levels(PLAIN, latents, shift="dynamic"), wanted, rtol=1e-5, atol=1e-6)


def test_a_number_replaces_the_dynamic_shift():
    latents = torch.ones(64, 4, 16, 16)
    plain = levels(PLAIN, latents, shift=1.0)
    torch.testing.assert_close(levels(DYNAMIC, latents, shift=1.0), plain)
    torch.testing.assert_close(levels(DYNAMIC, latents, shift=3.0), levels(PLAIN, latents), rtol=1e-5, atol=1e-6)
    assert levels(DYNAMIC, latents, shift=3.0).mean() > plain.mean()


def test_a_larger_image_is_trained_at_more_noise():
    small, large = (levels(DYNAMIC, torch.ones(64, 4, side, side)).mean() for side in (16, 128))
    assert large > small + 0.05
    assert math.exp(calculate_shift(4096)) == pytest.approx(3.158, abs=1e-3)


def test_check_reports_dynamic_shift_of_a_diffusion_model():
    checked = check_recipe("quickstart", ["train.timesteps={shift='dynamic'}"])
    [problem] = checked.problems
    assert "not supported for a diffusion model" in problem.text


def test_dynamic_shift_is_not_supported_for_diffusion_models():
    from tiny import tiny_scheduler

    with pytest.raises(StageError, match="flow matching"):
        objective_with(tiny_scheduler(), timesteps={"shift": "dynamic"}).sample(torch.ones(2, 4, 8, 8), 0, 0)


def test_a_scheduler_with_a_linear_time_shift_is_followed():
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, time_shift_type="linear")
    latents = torch.ones(64, 4, 128, 128)
    wanted = scheduler.time_shift(calculate_shift(4096), 1.0, levels(PLAIN, latents, shift=1.0))
    torch.testing.assert_close(levels(scheduler, latents), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", [DPMSolverMultistepScheduler, UniPCMultistepScheduler])
def test_a_flow_model_with_a_scheduler_for_several_kinds_has_its_shift(kind):
    scheduler = kind(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    made = objective_with(scheduler, kind="flow")
    assert made.kind == "flow"
    latents = torch.ones(64, 4, 16, 16)
    torch.testing.assert_close(
        made.sample(latents, 3, 0).timesteps / 1000, levels(PLAIN, latents), rtol=1e-5, atol=1e-5
    )
