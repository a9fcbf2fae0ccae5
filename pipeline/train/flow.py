"""Noise, target and weights of flow matching models (rectified flow, as in SD3)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..errors import StageError
from ..recipe.defaults import WEIGHTINGS
from ..recipe.options import NoiseOptions, ObjectiveOptions, TimestepOptions
from ..rng import generator
from .loss import NoisyBatch, draw_shares, example_losses, input_noise, offset_noise, require_timesteps, shifted


class Flow:
    """Rectified flow (Liu et al. 2022, Esser et al. 2024) as in diffusers' SD3 training scripts.

    An image x and noise n are mixed as (1 - σ) x + σ n; the denoiser predicts the velocity n - x. σ are those of the
    pipeline's scheduler, with its shift or the one of the options.
    """

    def __init__(
        self, scheduler: Any, options: ObjectiveOptions, noise: NoiseOptions, timesteps: TimestepOptions
    ) -> None:
        """Raises StageError for options that have no meaning in flow matching."""
        from diffusers import FlowMatchEulerDiscreteScheduler

        shift = timesteps.shift
        changes: dict[str, Any] = {} if shift is None else {"use_dynamic_shifting": True}
        if isinstance(shift, (int, float)):
            changes = {"shift": shift, "use_dynamic_shifting": False}
        elif "flow_shift" in scheduler.config:  # of schedulers for several kinds of models: DPM-Solver, UniPC
            changes |= {"shift": scheduler.config.flow_shift}
        process = FlowMatchEulerDiscreteScheduler.from_config(scheduler.config, **changes)
        self.dynamic: Any = process.config if process.config.use_dynamic_shifting else None
        self.kind = "flow"
        self.timesteps: int = process.config.num_train_timesteps
        self.times: Tensor = process.timesteps  # descending: the first is pure noise
        self.sigmas: Tensor = process.sigmas[: self.timesteps]
        self.options, self.noise, self.steps = options, noise, timesteps
        self._check_options()

    def _check_options(self) -> None:
        options = self.options
        if options.weighting not in WEIGHTINGS["flow"]:
            known = ", ".join(WEIGHTINGS["flow"])
            raise StageError(f"objective.weighting = {options.weighting!r} is for diffusion; use {known}")
        if options.prediction is not None or options.zero_terminal_snr:
            raise StageError(
                "objective: prediction and zero_terminal_snr have no effect on a flow matching model; remove them"
            )
        if self.options.loss in ("huber", "smooth_l1") and options.huber.schedule == "snr":
            raise StageError('objective.huber.schedule = "snr" is for diffusion models; use constant or exponential')
        require_timesteps(self.steps, self.timesteps)

    @staticmethod
    def sampling_scheduler(scheduler: Any) -> Any:
        """The pipeline's own scheduler: a shift in training does not affect sampling."""
        return scheduler

    def sample(self, latents: Tensor, seed: int, step: int) -> NoisyBatch:
        """Noise and target of one batch, drawn from (seed, step) alone; `latents` are float32 on the CPU."""
        noise, indices = self.draw(latents, seed, step)
        noise = offset_noise(noise, latents, self.noise, seed, step)
        sigmas, times = self.sigmas[indices], self.times[indices]
        if self.dynamic is not None:
            sigmas = shifted(sigmas, self._shift(latents))
            times = sigmas * self.timesteps
        noisy = self.noisy(latents, input_noise(noise, self.noise, seed, step), sigmas)
        threshold = self.threshold(sigmas)
        return NoisyBatch(noisy, times, noise - latents, self.weight(sigmas), threshold)

    def _shift(self, latents: Tensor) -> float:
        """The dynamic shift: it or its logarithm is linear in the tokens of an image, which are 2x2 latents.

        By the scheduler's config; the same numbers as the pipelines' `calculate_shift`.
        """
        config, tokens = self.dynamic, latents.shape[-2] * latents.shape[-1] / 4
        slope = (config.max_shift - config.base_shift) / (config.max_image_seq_len - config.base_image_seq_len)
        shift = float(config.base_shift + slope * (tokens - config.base_image_seq_len))
        return shift if config.time_shift_type == "linear" else math.exp(shift)

    def losses(self, prediction: Tensor, noisy_batch: NoisyBatch, mask: Tensor | None = None) -> Tensor:
        """The loss of each example, (batch,); see `loss.example_losses`."""
        return example_losses(prediction, noisy_batch, self.options, mask)

    def draw(self, latents: Tensor, seed: int, step: int) -> tuple[Tensor, Tensor]:
        """Plain noise like `latents` (CPU, float32) and indices (batch,) into the scheduler's descending timesteps.

        `low` and `high` count from the end without noise, before the shift.
        """
        draw = generator(seed, "noise", step)
        noise = torch.randn(latents.shape, generator=draw)
        share = draw_shares(self.steps.sampling or "logit-normal", len(latents), draw, self.steps)
        first, end = self.timesteps - (self.steps.high or self.timesteps), self.timesteps - self.steps.low
        indices = (first + share * (end - first)).long()
        return noise, indices.clamp(first, end - 1)

    @staticmethod
    def noisy(latents: Tensor, noise: Tensor, sigmas: Tensor) -> Tensor:
        """Latents as the denoiser sees them at these sigmas (batch,)."""
        mix = sigmas.reshape(-1, *([1] * (latents.ndim - 1)))
        return (1 - mix) * latents + mix * noise

    def weight(self, sigmas: Tensor) -> Tensor | None:
        """Weight of the loss at these sigmas: σ⁻² and the CosMap density of Esser et al. 2024, or σ².

        σ² makes the velocity's loss that of the image which it predicts: `precondition_outputs` of diffusers' script.
        """
        kind = self.options.weighting
        if kind == "sigma-sqrt":
            return sigmas**-2.0
        if kind == "cosmap":
            return 2 / (math.pi * (1 - 2 * sigmas + 2 * sigmas**2))
        return sigmas**2 if kind == "sigma-squared" else None

    def threshold(self, sigmas: Tensor) -> Tensor | None:
        """Where Huber's loss becomes linear; exponential in σ, the noise level."""
        if self.options.loss not in ("huber", "smooth_l1"):
            return None
        c, scale = float(self.options.huber.threshold), float(self.options.huber.scale)
        if self.options.huber.schedule == "constant":
            return torch.full((len(sigmas),), c * scale)
        return torch.exp(math.log(c) * sigmas) * scale
