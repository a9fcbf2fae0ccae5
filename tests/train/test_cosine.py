"""Diffusion at a ratio of noise against numbers made by hand, and against the scheduler of Stable Cascade."""

import math

import pytest
import torch
from diffusers import DDIMScheduler, DDPMWuerstchenScheduler
from train.objectives import objective_with

from pivotune.pipeline.errors import StageError
from pivotune.pipeline.train.cosine import LEAST_RATIO

LATENTS = torch.randn(6, 4, 2, 2, generator=torch.Generator().manual_seed(0))
ANSWER = torch.randn(6, 4, 2, 2, generator=torch.Generator().manual_seed(1))


def cosine(*, scaler=1.0, **options):
    return objective_with(DDPMWuerstchenScheduler(scaler=scaler), kind="cosine", **options)


def test_noise_levels_are_those_made_by_hand():
    """cos²((r + 0.008) / 1.008 · π/2) / cos²(0.008 / 1.008 · π/2), between 0.0001 and 0.9999."""
    ratios = torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0])
    expected = torch.tensor([0.9999, 0.847012, 0.493844, 0.144272, 0.0001])
    torch.testing.assert_close(cosine().alphas_at(ratios), expected, rtol=1e-5, atol=1e-6)
    assert float(expected[2]) == pytest.approx(math.cos(0.508 / 1.008 * math.pi / 2) ** 2 / 0.999845, rel=1e-5)


@pytest.mark.parametrize("scaler", [1.0, 0.5, 2.0])
def test_noisy_latents_are_the_schedulers(scaler):
    objective = cosine(scaler=scaler)
    batch = objective.sample(LATENTS, 7, 3)
    noise, ratios = objective.draw(LATENTS, 7, 3)
    assert torch.equal(batch.timesteps, ratios)
    assert torch.equal(batch.target, noise)
    expected = DDPMWuerstchenScheduler(scaler=scaler).add_noise(LATENTS, noise, ratios)
    torch.testing.assert_close(batch.noisy, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(objective.losses(ANSWER, batch), (ANSWER - noise).square().flatten(1).mean(1))


def test_a_weight_of_the_loss_is_one_made_by_hand():
    """At r = 0.5 the SNR is 0.493844 / 0.506156 = 0.975676, at r = 0.25 it is 5.536467."""
    ratios = torch.tensor([0.25, 0.5])
    weights = {
        "p2": [1 / 6.536467, 1 / 1.975676], "min-snr": [5 / 5.536467, 1.0],
        "debiased": [5.536467**-0.5, 0.975676**-0.5],
    }  # fmt: skip
    for kind, expected in weights.items():
        torch.testing.assert_close(
            cosine(weighting=kind).weight(ratios), torch.tensor(expected), rtol=1e-4, atol=1e-6, msg=kind
        )
    assert cosine().weight(ratios) is None


def test_ratios_are_continuous_and_within_the_bounds_in_thousandths():
    times = torch.cat([cosine().draw(LATENTS, 0, step)[1] for step in range(300)])
    assert float(times.min()) >= LEAST_RATIO
    assert float(times.max()) <= 1
    assert 0.45 < float(times.mean()) < 0.55
    assert bool(((times * 1000) % 1 > 0.01).any())
    bounded = cosine(timesteps={"low": 200, "high": 300})
    times = torch.cat([bounded.draw(LATENTS, 0, step)[1] for step in range(100)])
    assert 0.2 <= float(times.min()) < 0.21
    assert 0.29 < float(times.max()) <= 0.3
    more = cosine(timesteps={"shift": 3.0}).draw(LATENTS, 0, 0)[1]
    plain = cosine().draw(LATENTS, 0, 0)[1]
    torch.testing.assert_close(more, 3 * plain / (1 + 2 * plain))


@pytest.mark.parametrize("schedule", ["constant", "exponential", "snr"])
def test_hubers_threshold_falls_with_the_ratio(schedule):
    objective = cosine(loss="huber", huber={"schedule": schedule, "threshold": 0.1})
    low, middle, high = objective.threshold(torch.tensor([0.001, 0.5, 1.0])).tolist()
    if schedule == "constant":
        assert low == middle == high == pytest.approx(0.1)
        return
    assert low > middle > high
    assert high == pytest.approx(0.1, abs=1e-3)
    assert schedule == "snr" or middle == pytest.approx(0.1**0.5)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"weighting": "sigma-sqrt"}, "use none, p2, min-snr, debiased"),
        ({"prediction": "v_prediction"}, "have no effect"),
        ({"zero_terminal_snr": True}, "have no effect"),
        ({"timesteps": {"shift": "dynamic"}}, "use a number"),
        ({"timesteps": {"low": 900, "high": 900}}, "leave none"),
        ({"timesteps": {"high": 2000}}, "1000 timesteps"),
    ],
)
def test_options_without_a_meaning_are_refused(options, says):
    with pytest.raises(StageError, match=says):
        cosine(**options)


def test_another_scheduler_is_refused():
    with pytest.raises(StageError, match="needs a DDPMWuerstchenScheduler"):
        objective_with(DDIMScheduler(), kind="cosine")


def test_p2_is_refused_for_other_models():
    with pytest.raises(StageError, match="p2"):
        objective_with(DDIMScheduler(), weighting="p2")
