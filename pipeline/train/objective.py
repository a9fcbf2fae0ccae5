"""Noise, target and loss of the models' own diffusion objective."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from .draws import generator


class Objective:
    """The forward process of a pipeline's scheduler (Ho et al. 2020) and what its denoiser is asked for.

    Epsilon, sample or v-prediction (Salimans & Ho 2022), as the scheduler's config says.
    """

    def __init__(self, scheduler: Any) -> None:
        from diffusers import DDPMScheduler

        self.process = DDPMScheduler.from_config(scheduler.config)
        self.kind: str = self.process.config.prediction_type
        self.timesteps: int = self.process.config.num_train_timesteps

    def draw(self, latents: Tensor, seed: int, step: int) -> tuple[Tensor, Tensor]:
        """Noise like `latents` (CPU, float32) and uniform time steps (batch,) for one step."""
        draw = generator(seed, "noise", step)
        noise = torch.randn(latents.shape, generator=draw)
        return noise, torch.randint(self.timesteps, (len(latents),), generator=draw)

    def noisy(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Latents as the denoiser sees them at these time steps."""
        mixed: Tensor = self.process.add_noise(latents, noise, timesteps)
        return mixed

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """What the denoiser should answer."""
        if self.kind == "epsilon":
            return noise
        if self.kind == "sample":
            return latents
        velocity: Tensor = self.process.get_velocity(latents, noise, timesteps)
        return velocity

    @staticmethod
    def loss(prediction: Tensor, target: Tensor) -> Tensor:
        """Mean squared error in float32 over everything."""
        return mse_loss(prediction.float(), target.float())
