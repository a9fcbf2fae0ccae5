"""Noise, target and weights of diffusion models: epsilon, sample or v-prediction, any noise schedule."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..errors import StageError
from ..recipe.defaults import WEIGHTINGS
from ..recipe.options import NoiseOptions, ObjectiveOptions, TimestepOptions
from ..rng import generator
from .loss import NoisyBatch, draw_steps, example_losses, input_noise, offset_noise, require_timesteps

MAX_SNR = 1000.0  # of debiased weights, as in kohya's scripts: the first timesteps have hardly any noise


class Diffusion:
    """The forward process of a pipeline's scheduler (Ho et al. 2020) and the target of its denoiser.

    Epsilon, sample or v-prediction (Salimans & Ho 2022), as the scheduler's config or the options have it.
    """

    def __init__(
        self, scheduler: Any, options: ObjectiveOptions, noise: NoiseOptions, timesteps: TimestepOptions
    ) -> None:
        """Raises StageError for options that fit no diffusion model, or not this one."""
        from diffusers import DDPMScheduler

        wanted = {"prediction_type": options.prediction, "rescale_betas_zero_snr": options.zero_terminal_snr}
        changes = {name: value for name, value in wanted.items() if value is not None}
        self.process = DDPMScheduler.from_config(scheduler.config, **changes)
        self.kind: str = self.process.config.prediction_type
        self.timesteps: int = self.process.config.num_train_timesteps
        self.options, self.noise, self.steps = options, noise, timesteps
        self.alphas: Tensor = self.process.alphas_cumprod
        self._check_options()

    def _check_options(self) -> None:
        if self.options.weighting not in WEIGHTINGS["diffusion"]:
            kind, known = self.options.weighting, ", ".join(WEIGHTINGS["diffusion"])
            raise StageError(f"objective.weighting = {kind!r} is not supported for a diffusion model; use {known}")
        require_timesteps(self.steps, self.timesteps)
        if self.kind == "epsilon" and self.process.config.rescale_betas_zero_snr:
            raise StageError(
                "zero terminal SNR: the last timestep contains nothing of the image, so a model that predicts the "
                "noise has nothing to train there; use a model with v-prediction "
                '(objective.prediction = "v_prediction")'
            )

    def sampling_scheduler(self, scheduler: Any) -> Any:
        """The scheduler for sampling with the trained model: the pipeline's, with what the options change.

        With zero terminal SNR sampling starts at the last timestep (`trailing`), as Lin et al. 2023 require.
        """
        wanted = {"prediction_type": self.kind, "rescale_betas_zero_snr": self.process.config.rescale_betas_zero_snr}
        changes = {name: value for name, value in wanted.items() if scheduler.config.get(name, False) != value}
        if changes.get("rescale_betas_zero_snr"):
            changes["timestep_spacing"] = "trailing"
        return type(scheduler).from_config(scheduler.config, **changes) if changes else scheduler

    def sample(self, latents: Tensor, seed: int, step: int) -> NoisyBatch:
        """Noise and target of one batch, drawn from (seed, step) alone; `latents` are float32 on the CPU."""
        noise, timesteps = self.draw(latents, seed, step)
        noise = offset_noise(noise, latents, self.noise, seed, step)
        noisy = self.noisy(latents, input_noise(noise, self.noise, seed, step), timesteps)
        target = self.target(latents, noise, timesteps)
        return NoisyBatch(noisy, timesteps, target, self.weight(timesteps), self.threshold(timesteps))

    def losses(self, prediction: Tensor, noisy_batch: NoisyBatch, mask: Tensor | None = None) -> Tensor:
        """The loss of each example, (batch,); see `loss.example_losses`."""
        return example_losses(prediction, noisy_batch, self.options, mask)

    def draw(self, latents: Tensor, seed: int, step: int) -> tuple[Tensor, Tensor]:
        """Plain noise like `latents` (CPU, float32) and timesteps (batch,) for one step."""
        draw = generator(seed, "noise", step)
        noise = torch.randn(latents.shape, generator=draw)
        return noise, draw_steps(len(latents), self.timesteps, draw, self.steps)

    def noisy(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Latents as the denoiser sees them at these timesteps."""
        mixed: Tensor = self.process.add_noise(latents, noise, timesteps)
        return mixed

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """What the denoiser predicts."""
        if self.kind == "epsilon":
            return noise
        if self.kind == "sample":
            return latents
        velocity: Tensor = self.process.get_velocity(latents, noise, timesteps)
        return velocity

    def snr(self, timesteps: Tensor) -> Tensor:
        """Signal-to-noise ratio at timesteps (batch,), float32."""
        alphas = self.alphas[timesteps].double()
        return (alphas / (1 - alphas)).float()

    def weight(self, timesteps: Tensor) -> Tensor | None:
        """Weight of the loss at these timesteps.

        min-SNR-γ (Hang et al. 2023): min(SNR, γ) of the image's loss, whose epsilon form is divided by SNR and whose
        velocity form by SNR + 1. Debiased (Yu et al. 2023): 1/√SNR of the noise's loss; for velocity 1/(SNR + 1), as
        kohya's scripts have it.
        """
        if self.options.weighting == "none":
            return None
        snr = self.snr(timesteps)
        if self.options.weighting == "min-snr":
            clamped = snr.clamp(max=self.options.gamma)
            return clamped / {"epsilon": snr, "v_prediction": snr + 1, "sample": torch.ones_like(snr)}[self.kind]
        snr = snr.clamp(max=MAX_SNR)
        return {"epsilon": snr.rsqrt(), "v_prediction": 1 / (snr + 1), "sample": snr.sqrt()}[self.kind]

    def threshold(self, timesteps: Tensor) -> Tensor | None:
        """Where Huber's loss becomes linear at these timesteps, by the schedules of kohya's scripts."""
        if self.options.loss not in ("huber", "smooth_l1"):
            return None
        huber = self.options.huber
        c, scale = float(huber.threshold), float(huber.scale)
        if huber.schedule == "constant":
            return torch.full((len(timesteps),), c * scale)
        if huber.schedule == "exponential":
            return torch.exp(math.log(c) / self.timesteps * timesteps) * scale
        sigma = self.snr(timesteps).rsqrt()
        return (1 - c) / (1 + sigma) ** 2 + c
