"""Noise, target and weights of diffusion models whose time is a ratio from 0 to 1 (Stable Cascade)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..errors import StageError
from ..recipe.defaults import WEIGHTINGS
from ..recipe.options import NoiseOptions, ObjectiveOptions, TimestepOptions
from ..rng import generator
from .diffusion import Diffusion
from .loss import draw_shares, require_timesteps, shifted

LEAST_RATIO = 0.001  # no less noise is trained, as in OneTrainer
ALPHAS = (0.0001, 0.9999)  # the scheduler clamps the share of the image to this


class Cosine(Diffusion):
    """The forward process of `DDPMWuerstchenScheduler` (Pernias et al. 2023): ᾱ(r) is a cosine of the ratio r.

    The denoiser predicts the noise. In options of timesteps the ratio counts in thousandths.
    """

    kind = "epsilon"
    timesteps = 1000

    def __init__(
        self, scheduler: Any, options: ObjectiveOptions, noise: NoiseOptions, timesteps: TimestepOptions
    ) -> None:
        """Raises StageError for options that have no meaning here, and for another scheduler."""
        self.options, self.noise, self.steps = options, noise, timesteps
        if "scaler" not in scheduler.config or "s" not in scheduler.config:
            raise StageError(f"scheduler {type(scheduler).__name__}: this family needs a DDPMWuerstchenScheduler")
        self.scaler, self.offset = float(scheduler.config.scaler), float(scheduler.config.s)
        self._check_options()

    def _check_options(self) -> None:
        options = self.options
        if options.weighting not in WEIGHTINGS["cosine"]:
            kind, known = options.weighting, ", ".join(WEIGHTINGS["cosine"])
            raise StageError(f"objective.weighting = {kind!r} is not supported for this family; use {known}")
        if options.prediction is not None or options.zero_terminal_snr:
            raise StageError("objective: prediction and zero_terminal_snr have no effect on this family; remove them")
        if self.steps.shift == "dynamic":
            raise StageError("timesteps.shift = 'dynamic' is for flow matching models; use a number")
        require_timesteps(self.steps, self.timesteps)

    def sampling_scheduler(self, scheduler: Any) -> Any:
        """The pipeline's own scheduler: options do not change it."""
        return scheduler

    def alphas_at(self, ratios: Tensor) -> Tensor:
        """The share of the image's variance (batch,) at ratios (batch,), float32, as the scheduler computes it."""
        times = 1 - (1 - ratios) ** self.scaler if self.scaler > 1 else ratios**self.scaler
        first = math.cos(self.offset / (1 + self.offset) * math.pi / 2) ** 2
        angle = (times + self.offset) / (1 + self.offset) * math.pi / 2
        return (torch.cos(angle) ** 2 / first).clamp(*ALPHAS)

    def draw(self, latents: Tensor, seed: int, step: int) -> tuple[Tensor, Tensor]:
        """Plain noise like `latents` (CPU, float32) and ratios (batch,) for one step.

        Between `low` and `high`, then shifted; LEAST_RATIO at least.
        """
        draw = generator(seed, "noise", step)
        noise = torch.randn(latents.shape, generator=draw)
        low, high = self.steps.low / self.timesteps, (self.steps.high or self.timesteps) / self.timesteps
        ratios = low + draw_shares(self.steps.sampling or "uniform", len(latents), draw, self.steps) * (high - low)
        return noise, shifted(ratios, float(self.steps.shift or 1.0)).clamp(LEAST_RATIO, 1.0)

    def noisy(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Latents as the denoiser sees them at these ratios (batch,)."""
        alphas = self.alphas_at(timesteps).reshape(-1, *([1] * (latents.ndim - 1)))
        return alphas.sqrt() * latents + (1 - alphas).sqrt() * noise

    def snr(self, timesteps: Tensor) -> Tensor:
        """Signal-to-noise ratio at ratios (batch,), float32."""
        alphas = self.alphas_at(timesteps)
        return alphas / (1 - alphas)

    def weight(self, timesteps: Tensor) -> Tensor | None:
        """As for other models; `p2` is 1 / (1 + SNR) (Choi et al. 2022 with k = γ = 1), OneTrainer's default here."""
        return 1 / (1 + self.snr(timesteps)) if self.options.weighting == "p2" else super().weight(timesteps)

    def threshold(self, timesteps: Tensor) -> Tensor | None:
        """As for other models; the exponential schedule is one in the ratio."""
        scaled = timesteps * self.timesteps if self.options.huber.schedule == "exponential" else timesteps
        return super().threshold(scaled)
