"""Noise and targets against the papers' formulas written out."""

import pytest
import torch
from diffusers import DDIMScheduler

from pivotune.pipeline.train.objective import Objective


def scheduler(kind):
    return DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type=kind)


def parts():
    draw = torch.Generator().manual_seed(0)
    latents, noise = (torch.randn(3, 4, 2, 2, generator=draw) for _ in range(2))
    return latents, noise, torch.tensor([0, 500, 999])


def alphas():
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    return (1 - betas).cumprod(0)[[0, 500, 999]].reshape(3, 1, 1, 1)


def test_noised_latents():
    latents, noise, steps = parts()
    expected = alphas().sqrt() * latents + (1 - alphas()).sqrt() * noise
    torch.testing.assert_close(Objective(scheduler("epsilon")).noisy(latents, noise, steps), expected.float())


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_targets(kind):
    latents, noise, steps = parts()
    expected = {
        "epsilon": noise,
        "sample": latents,
        "v_prediction": (alphas().sqrt() * noise - (1 - alphas()).sqrt() * latents).float(),
    }
    torch.testing.assert_close(Objective(scheduler(kind)).target(latents, noise, steps), expected[kind])


def test_noise_and_time_steps_depend_on_seed_and_step_alone():
    objective, latents = Objective(scheduler("epsilon")), parts()[0]
    one, again, other = (objective.draw(latents, 7, step) for step in (3, 3, 4))
    assert torch.equal(one[0], again[0])
    assert torch.equal(one[1], again[1])
    assert not torch.equal(one[0], other[0])
    assert int(torch.stack([objective.draw(latents, 0, step)[1] for step in range(300)]).max()) <= 999


def test_the_loss_is_taken_in_float32():
    prediction = torch.full((2, 2), 300.0, dtype=torch.float16)  # its square is no finite float16
    assert float(Objective.loss(prediction, torch.zeros(2, 2))) == 90000.0
