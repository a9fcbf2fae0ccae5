"""Pictures through the VAE once, before the first step."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .pixels import crop_sizes, open_picture, picture_tensor

Wanted = tuple[Path, bool]  # a picture, and whether it is mirrored


class Latents:
    """What the VAE says of each picture: mean and deviation, from which each step draws, as with the VAE in the loop.

    Pictures are encoded one by one: a batch would change the last bits.
    """

    def __init__(self, vae: Any, paths: Sequence[Path], resolution: int, *, flip: bool) -> None:
        self.factor = float(vae.config.scaling_factor)
        self.shift = float(getattr(vae.config, "shift_factor", None) or 0.0)
        self.sizes: dict[Wanted, tuple[float, ...]] = {}
        self._told: dict[Wanted, tuple[Tensor, Tensor]] = {}
        for path in paths:
            picture = open_picture(path)
            values = picture_tensor(picture, resolution)
            for mirrored in (False, True) if flip else (False,):
                self._told[path, mirrored] = encode(vae, values.flip(-1) if mirrored else values)
                self.sizes[path, mirrored] = crop_sizes(picture.size, (resolution, resolution))

    def draw(self, wanted: Sequence[Wanted], draw: torch.Generator) -> Tensor:
        """Latents of these pictures for one step, (batch, channels, height, width) float32 on the CPU."""
        mean = torch.stack([self._told[one][0] for one in wanted])
        deviation = torch.stack([self._told[one][1] for one in wanted])
        noise = torch.randn(mean.shape, generator=draw)
        return (mean + deviation * noise - self.shift) * self.factor


@torch.no_grad()
def encode(vae: Any, values: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation of one picture's latents, (channels, height, width) float32 on the CPU."""
    told = vae.encode(values.unsqueeze(0).to(vae.device, vae.dtype)).latent_dist
    return told.mean[0].float().cpu(), told.std[0].float().cpu()
