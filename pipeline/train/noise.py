"""The noise of a step, and what may be done to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .draws import generator


@dataclass(frozen=True)
class NoiseOptions:
    """What is done to the noise; `schemas/tables/noise.json` says what each means."""

    offset: float = 0.0
    offset_per_channel: bool = True
    offset_adaptive: float = 0.0
    perturbation: float = 0.0
    input_perturbation: float = 0.0

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> NoiseOptions:
        return cls(**options)


def offset_noise(noise: Tensor, latents: Tensor, options: NoiseOptions, seed: int, step: int) -> Tensor:
    """The noise with what the denoiser is asked for too: an offset a channel, and a perturbation.

    The offset is Guttenberg's (CrossLabs 2023), its strength grown by the channel's mean as in kohya's scripts
    (`adaptive_noise_scale`); the perturbation is OneTrainer's. Their draws are apart from the noise's own.
    """
    if options.offset or options.offset_adaptive:
        channels = latents.shape[1] if options.offset_per_channel else 1
        drawn = torch.randn(len(latents), channels, 1, 1, generator=generator(seed, "noise offset", step))
        means = latents.mean(dim=(2, 3), keepdim=True).abs()
        noise = noise + (options.offset + options.offset_adaptive * means).clamp(min=0.0) * drawn
    if options.perturbation:
        more = torch.randn(noise.shape, generator=generator(seed, "noise perturbation", step))
        noise = noise + options.perturbation * more
    return noise


def input_noise(noise: Tensor, options: NoiseOptions, seed: int, step: int) -> Tensor:
    """The noise that the denoiser sees (Ning et al. 2023, `input_perturbation` of diffusers' training scripts)."""
    if not options.input_perturbation:
        return noise
    return noise + options.input_perturbation * torch.randn(
        noise.shape, generator=generator(seed, "input perturbation", step)
    )
