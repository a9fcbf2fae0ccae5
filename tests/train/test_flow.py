"""Rectified flow against its formulas, and against diffusers' SD3 training script."""

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.training_utils import compute_density_for_timestep_sampling, compute_loss_weighting_for_sd3
from train.objectives import flow

from pivotune.pipeline.errors import StageError
from pivotune.pipeline.recipe.options import TimestepOptions
from pivotune.pipeline.recipe.typed import options_of
from pivotune.pipeline.rng import generator
from pivotune.pipeline.train.loss import draw_shares

LATENTS = torch.randn(6, 4, 2, 2, generator=torch.Generator().manual_seed(0))
ANSWER = torch.randn(6, 4, 2, 2, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kind", ["logit-normal", "mode", "uniform"])
@pytest.mark.parametrize("weighting", ["none", "sigma-sqrt", "cosmap"])
def test_the_loss_matches_the_sd3_script(kind, weighting):
    objective = flow(weighting=weighting, timesteps={"sampling": kind})
    losses = objective.losses(ANSWER, objective.sample(LATENTS, 7, 3))

    scheduler, draw = FlowMatchEulerDiscreteScheduler(shift=3.0), generator(7, "noise", 3)
    noise = torch.randn(LATENTS.shape, generator=draw)
    u = compute_density_for_timestep_sampling(kind.replace("-", "_"), 6, 0.0, 1.0, 1.29, generator=draw)
    indices = (u * scheduler.config.num_train_timesteps).long()
    timesteps = scheduler.timesteps[indices]
    places = [(scheduler.timesteps == t).nonzero().item() for t in timesteps]
    sigmas = scheduler.sigmas[places].flatten().reshape(6, 1, 1, 1)
    noisy = (1.0 - sigmas) * LATENTS + sigmas * noise
    weight = compute_loss_weighting_for_sd3(weighting.replace("-", "_"), sigmas)
    loss = torch.mean((weight * (ANSWER - (noise - LATENTS)) ** 2).reshape(6, -1), 1)

    asked = objective.sample(LATENTS, 7, 3)
    assert torch.equal(asked.timesteps, timesteps)
    torch.testing.assert_close(asked.noisy, noisy)
    torch.testing.assert_close(losses, loss)


def test_weights_by_the_square_of_sigma_are_preconditioned_outputs():
    objective = flow(weighting="sigma-squared")
    asked = objective.sample(LATENTS, 7, 3)
    sigmas = (asked.timesteps / 1000).reshape(6, 1, 1, 1)
    image = ANSWER * (-sigmas) + asked.noisy
    expected = ((image - LATENTS) ** 2).flatten(1).mean(1)
    torch.testing.assert_close(objective.losses(ANSWER, asked), expected, rtol=1e-4, atol=1e-6)


def test_the_shift_is_the_schedulers_or_the_recipes():
    for objective in (flow(shift=3.0), flow(shift=1.0, timesteps={"shift": 3.0})):
        plain = torch.linspace(1, 1 / 1000, 1000)
        torch.testing.assert_close(objective.sigmas, 3 * plain / (1 + 2 * plain), rtol=1e-4, atol=1e-5)


def test_bounds_count_from_the_end_without_noise():
    objective = flow(shift=1.0, timesteps={"low": 100, "high": 400, "sampling": "uniform"})
    times = torch.cat([objective.sample(LATENTS, 0, step).timesteps for step in range(200)])
    assert 100 < float(times.min()) < 105
    assert 395 < float(times.max()) <= 400


def test_noise_minus_velocity_is_the_image():
    asked = flow().sample(LATENTS, 7, 3)
    sigmas = (asked.timesteps / 1000).reshape(6, 1, 1, 1)
    torch.testing.assert_close(asked.noisy - sigmas * asked.target, LATENTS, rtol=1e-4, atol=1e-5)


def test_huber_thresholds_fall_with_sigma():
    objective = flow(loss="huber", huber={"schedule": "exponential"})
    torch.testing.assert_close(objective.threshold(torch.tensor([0.0, 0.5, 1.0])), torch.tensor([1.0, 0.1**0.5, 0.1]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weighting": "min-snr"}, "is for diffusion; use none, sigma-sqrt, cosmap, sigma-squared"),
        ({"prediction": "epsilon"}, "no effect on a flow matching model"),
        ({"zero_terminal_snr": True}, "no effect on a flow matching model"),
        ({"loss": "huber"}, "is for diffusion models; use constant or exponential"),
    ],
)
def test_diffusion_options_are_errors_for_flow_matching(options, message):
    with pytest.raises(StageError, match=message):
        flow(**options)


@pytest.mark.parametrize(("share", "time"), [(0.0, 0.0), (0.161426, 0.25), (0.5, 0.5), (1.0, 1.0)])
def test_the_inverted_parabola_is_drawn_by_its_integral(share, time, monkeypatch):
    """With weight 7.7 the integral up to t is (2t - 7.7 ((t - 0.5)³ + 0.125) / 3) / (2 - 7.7 / 12)."""
    monkeypatch.setattr(torch, "rand", lambda count, generator: torch.full((count,), share))
    options = options_of(TimestepOptions, sampling="inverted-parabola")
    drawn = draw_shares("inverted-parabola", 3, torch.Generator(), options)
    torch.testing.assert_close(drawn, torch.full((3,), time), rtol=0, atol=1e-5)


def test_a_steep_parabola_draws_from_the_middle_alone():
    options = options_of(TimestepOptions, sampling="inverted-parabola", parabola_weight=200.0)
    drawn = draw_shares("inverted-parabola", 1000, torch.Generator().manual_seed(0), options)
    assert (drawn - 0.5).abs().max() <= 0.1 + 1e-4
