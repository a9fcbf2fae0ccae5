"""Noise, targets and time steps of diffusion models against the papers' formulas written out."""

import pytest
import torch
from diffusers.training_utils import compute_density_for_timestep_sampling, compute_snr
from train.objectives import diffusion, objective_with, scheduler

from pivotune.pipeline.errors import StageError
from pivotune.pipeline.recipe.options import TimestepOptions
from pivotune.pipeline.recipe.typed import options_of
from pivotune.pipeline.rng import generator
from pivotune.pipeline.train.loss import draw_shares, draw_steps

STEPS = [0, 500, 999]


def parts():
    draw = torch.Generator().manual_seed(0)
    latents, noise = (torch.randn(3, 4, 2, 2, generator=draw) for _ in range(2))
    return latents, noise, torch.tensor(STEPS)


def alphas():
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    return (1 - betas).cumprod(0)[STEPS].reshape(3, 1, 1, 1)


def snr():
    return (alphas() / (1 - alphas())).flatten()


def test_noised_latents():
    latents, noise, steps = parts()
    expected = alphas().sqrt() * latents + (1 - alphas()).sqrt() * noise
    torch.testing.assert_close(diffusion().noisy(latents, noise, steps), expected.float())


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_targets(kind):
    latents, noise, steps = parts()
    expected = {
        "epsilon": noise,
        "sample": latents,
        "v_prediction": (alphas().sqrt() * noise - (1 - alphas()).sqrt() * latents).float(),
    }
    torch.testing.assert_close(diffusion(kind).target(latents, noise, steps), expected[kind])
    torch.testing.assert_close(diffusion("sample", prediction=kind).target(latents, noise, steps), expected[kind])


def test_zero_terminal_snr_matches_lins_rescaled_schedule():
    objective = diffusion("v_prediction", zero_terminal_snr=True)
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    root = (1 - betas).cumprod(0).sqrt()
    expected = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
    torch.testing.assert_close(objective.alphas.double(), expected, atol=1e-6, rtol=1e-4)
    latents, noise, _ = parts()
    last = torch.full((3,), 999)
    torch.testing.assert_close(objective.noisy(latents, noise, last), noise)  # nothing of the image is left
    torch.testing.assert_close(objective.target(latents, noise, last), -latents)


def test_zero_terminal_snr_is_an_error_for_models_that_predict_noise():
    with pytest.raises(StageError, match="nothing to train there; use a model with v-prediction"):
        diffusion("epsilon", zero_terminal_snr=True)
    with pytest.raises(StageError, match="nothing to train there"):
        objective_with(scheduler("epsilon", rescale_betas_zero_snr=True))


def test_noise_and_timesteps_depend_on_seed_and_step():
    objective, latents = diffusion(), parts()[0]
    one, again, other = (objective.sample(latents, 7, step) for step in (3, 3, 4))
    assert torch.equal(one.noisy, again.noisy)
    assert torch.equal(one.timesteps, again.timesteps)
    assert not torch.equal(one.noisy, other.noisy)
    assert int(torch.stack([objective.draw(latents, 0, step)[1] for step in range(300)]).max()) <= 999


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("epsilon", lambda snr: snr.clamp(max=5) / snr),
        ("v_prediction", lambda snr: snr.clamp(max=5) / (snr + 1)),
        ("sample", lambda snr: snr.clamp(max=5)),
    ],
)
def test_min_snr_weights(kind, expected):
    objective = diffusion(kind, weighting="min-snr")
    torch.testing.assert_close(objective.weight(torch.tensor(STEPS)), expected(snr()).float(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(
        objective.snr(torch.tensor(STEPS)), compute_snr(objective.process, torch.tensor(STEPS)), rtol=1e-3, atol=1e-6
    )


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("epsilon", lambda snr: 1 / snr.clamp(max=1000).sqrt()),
        ("v_prediction", lambda snr: 1 / (snr.clamp(max=1000) + 1)),
        ("sample", lambda snr: snr.clamp(max=1000).sqrt()),
    ],
)
def test_debiased_weights(kind, expected):
    assert snr()[0] > 1000  # else the cut is not tried
    weights = diffusion(kind, weighting="debiased").weight(torch.tensor(STEPS))
    torch.testing.assert_close(weights, expected(snr()).float(), rtol=1e-4, atol=1e-6)


def test_all_weightings_of_the_image_agree():
    """One error of the predicted image costs the same whichever way the denoiser spells its answer."""
    costs = []
    for kind in ("epsilon", "v_prediction", "sample"):
        a = alphas().flatten()
        error = {"epsilon": a / (1 - a), "v_prediction": 1 / (1 - a), "sample": torch.ones(3)}[kind]  # of the image's
        costs.append(diffusion(kind, weighting="min-snr").weight(torch.tensor(STEPS)) * error)
    torch.testing.assert_close(costs[0], costs[1], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(costs[0], costs[2].double(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", lambda t, sigma: torch.full((3,), 0.1 * 2.0)),
        ("exponential", lambda t, sigma: 2.0 * 0.1 ** (t / 1000)),
        ("snr", lambda t, sigma: 0.9 / (1 + sigma) ** 2 + 0.1),
    ],
)
def test_huber_thresholds(schedule, expected):
    objective = diffusion(loss="huber", huber={"schedule": schedule, "scale": 2.0})
    steps = torch.tensor(STEPS)
    wanted = expected(steps, snr().rsqrt()).float()
    torch.testing.assert_close(objective.threshold(steps), wanted, rtol=1e-5, atol=1e-6)


def test_bounds_and_sampling_of_timesteps():
    def drawn(**options):
        draw = torch.Generator().manual_seed(0)
        return draw_steps(20_000, 1000, draw, options_of(TimestepOptions, **options))

    for sampling in ("uniform", "logit-normal", "mode"):
        times = drawn(low=200, high=700, sampling=sampling)
        assert 200 <= int(times.min()) < 215
        assert 685 < int(times.max()) < 700
    middle = [
        float(((times > 250) & (times < 750)).float().mean()) for times in (drawn(), drawn(sampling="logit-normal"))
    ]
    assert middle[0] == pytest.approx(0.5, abs=0.02)
    assert middle[1] == pytest.approx(0.728, abs=0.02)  # of a normal distribution, within ±ln 3
    assert float(drawn(sampling="logit-normal", mean=1.0).float().median()) == pytest.approx(731, abs=10)
    assert float(drawn(shift=3.0).float().median()) == pytest.approx(750, abs=10)


@pytest.mark.parametrize("kind", ["uniform", "logit-normal", "mode"])
def test_timestep_densities_match_diffusers(kind):
    options = options_of(TimestepOptions, mean=0.3, deviation=0.8)
    ours = draw_shares(kind, 50, torch.Generator().manual_seed(1), options)
    theirs = compute_density_for_timestep_sampling(
        kind.replace("-", "_"), 50, 0.3, 0.8, 1.29, generator=torch.Generator().manual_seed(1)
    )
    torch.testing.assert_close(ours, theirs)


def test_noise_offset_is_per_channel():
    latents = parts()[0]
    plain, shifted = (diffusion(noise={"offset": offset}).sample(latents, 7, 3) for offset in (0.0, 0.1))
    drawn = torch.randn(3, 4, 1, 1, generator=generator(7, "noise offset", 3))
    torch.testing.assert_close(shifted.target, plain.target + 0.1 * drawn)
    assert torch.equal(shifted.timesteps, plain.timesteps)
    torch.testing.assert_close(shifted.noisy, diffusion().noisy(latents, shifted.target, shifted.timesteps))
    adaptive = diffusion(noise={"offset": 0.1, "offset_adaptive": -0.5}).sample(latents, 7, 3)
    strength = (0.1 - 0.5 * latents.mean(dim=(2, 3), keepdim=True).abs()).clamp(min=0)
    assert 0 < int((strength == 0).sum()) < 12
    torch.testing.assert_close(adaptive.target, plain.target + strength * drawn)
    together = diffusion(noise={"offset": 0.1, "offset_per_channel": False}).sample(latents, 7, 3).target - plain.target
    assert together.flatten(1).std(dim=1).max() < 1e-6
    assert together.std() > 0.01


def test_a_perturbation_is_in_the_target_and_an_input_perturbation_is_not():
    latents = parts()[0]
    plain = diffusion().sample(latents, 7, 3)
    more = torch.randn(3, 4, 2, 2, generator=generator(7, "noise perturbation", 3))
    asked = diffusion(noise={"perturbation": 0.2}).sample(latents, 7, 3)
    torch.testing.assert_close(asked.target, plain.target + 0.2 * more)
    torch.testing.assert_close(asked.noisy, diffusion().noisy(latents, plain.target + 0.2 * more, plain.timesteps))
    seen = torch.randn(3, 4, 2, 2, generator=generator(7, "input perturbation", 3))
    unasked = diffusion(noise={"input_perturbation": 0.1}).sample(latents, 7, 3)
    assert torch.equal(unasked.target, plain.target)
    torch.testing.assert_close(unasked.noisy, diffusion().noisy(latents, plain.target + 0.1 * seen, plain.timesteps))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weighting": "cosmap"}, "is not supported for a diffusion model; use none, min-snr, debiased"),
        ({"timesteps": {"low": 900, "high": 900}}, "leave none of the model's 1000 timesteps"),
        ({"timesteps": {"high": 2000}}, "high at most that many"),
    ],
)
def test_invalid_options_are_errors(options, message):
    with pytest.raises(StageError, match=message):
        diffusion(**options)


def test_the_sampling_scheduler_has_the_changed_options():
    made = diffusion("epsilon", prediction="v_prediction", zero_terminal_snr=True).sampling_scheduler(
        scheduler("epsilon")
    )
    assert type(made).__name__ == "DDIMScheduler"
    assert made.config.prediction_type == "v_prediction"
    assert float(made.alphas_cumprod[-1]) == 0
    made.set_timesteps(5)
    assert int(made.timesteps[0]) == 999
    unchanged = scheduler("epsilon")
    assert diffusion("epsilon").sampling_scheduler(unchanged) is unchanged
