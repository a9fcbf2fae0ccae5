"""Pictures through the VAE once, before the first step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .draws import generator
from .pictures import picture_tensor


@dataclass(frozen=True, eq=False)
class Latents:
    """What the VAE says of each picture: `mean` and `deviation`, (pictures, channels, height, width) on the CPU.

    A step draws from them, as training with the VAE in the loop does. `factor` and `shift` scale to the denoiser's
    range.
    """

    mean: Tensor
    deviation: Tensor
    factor: float
    shift: float

    def draw(self, pictures: Sequence[int], seed: int, step: int) -> Tensor:
        """Latents of these pictures for one step, (batch, channels, height, width) float32 on the CPU."""
        index = torch.tensor(pictures)
        noise = torch.randn(self.mean[index].shape, generator=generator(seed, "latents", step))
        return (self.mean[index] + self.deviation[index] * noise - self.shift) * self.factor


@torch.no_grad()
def encode_pictures(vae: Any, paths: Sequence[Path], resolution: int, *, flip: bool = False) -> Latents:
    """Encode the pictures one by one (a batch would change the last bits); with `flip` mirrored."""
    means, deviations = [], []
    for path in paths:
        picture = picture_tensor(path, resolution)
        values = picture.flip(-1) if flip else picture
        told = vae.encode(values.unsqueeze(0).to(vae.device, vae.dtype)).latent_dist
        means.append(told.mean.float().cpu())
        deviations.append(told.std.float().cpu())
    shift = getattr(vae.config, "shift_factor", None) or 0.0
    return Latents(torch.cat(means), torch.cat(deviations), float(vae.config.scaling_factor), float(shift))
