"""Trains the autoencoder: first both halves, then the decoder alone on latents with noise on them."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn
from torch.nn import functional

from .build import build_vae
from .data import Drawn, to_tensor
from .training import fit

CROP = 32
WHOLE = 0.3  # share of the steps, at the end, on whole images
NOISE = 0.45  # largest standard deviation of the noise the decoder learns to remove


def train_vae(data: Drawn, folder: Path, steps: int, decoder_steps: int) -> AutoencoderKL:
    """The autoencoder after both trainings, its scaling factor set so that latents have variance 1."""
    vae = build_vae().to(memory_format=torch.channels_last)
    images = to_tensor(data.images)
    centres = torch.tensor([(scene.x, scene.y) for scene in data.scenes])

    def both(step: int) -> Tensor:
        batch = _crops(images, centres, 16) if step < (1 - WHOLE) * steps else _whole(images, 4)
        latents = vae.encode(batch).latent_dist
        divergence = latents.kl().mean() / latents.mean[0].numel()
        return image_loss(vae.decode(latents.sample()).sample, batch) + 3e-4 * divergence

    optimizer = torch.optim.AdamW(vae.parameters(), lr=1.5e-3, betas=(0.9, 0.95), weight_decay=0.01)
    fit(nn.ModuleDict({"vae": vae}), both, optimizer, steps, folder / "vae.pt")
    vae.register_to_config(scaling_factor=1 / latent_deviation(vae, images[:512]))
    return train_decoder(vae, images, folder, decoder_steps)


def train_decoder(vae: AutoencoderKL, images: Tensor, folder: Path, steps: int) -> AutoencoderKL:
    """Teach the decoder to draw cleanly from latents that a denoiser left a little noise on."""
    vae.encoder.requires_grad_(False)
    vae.quant_conv.requires_grad_(False)
    deviation = 1 / vae.config.scaling_factor

    def decode(step: int) -> Tensor:
        batch = _whole(images, 4)
        with torch.no_grad():
            latents = vae.encode(batch).latent_dist.mean
        sigma = NOISE * deviation * torch.rand(len(batch), 1, 1, 1) ** 1.5
        return image_loss(vae.decode(latents + sigma * torch.randn_like(latents)).sample, batch)

    trained = [p for p in vae.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1.5e-3, betas=(0.9, 0.95), weight_decay=0.01)
    fit(nn.ModuleDict({"vae": vae}), decode, optimizer, steps, folder / "decoder.pt")
    return vae


def image_loss(drawn: Tensor, wanted: Tensor) -> Tensor:
    """L1, squares, and half the L1 of the gradients, which keeps edges sharp."""
    down = functional.l1_loss(drawn.diff(dim=2), wanted.diff(dim=2))
    across = functional.l1_loss(drawn.diff(dim=3), wanted.diff(dim=3))
    return functional.l1_loss(drawn, wanted) + functional.mse_loss(drawn, wanted) + 0.5 * (down + across)


@torch.no_grad()
def encode(vae: AutoencoderKL, images: Tensor, size: int = 64) -> Tensor:
    """Unscaled mean latents of all images, (count, 4, 16, 16)."""
    return torch.cat([vae.encode(batch).latent_dist.mean for batch in images.split(size)])


def latent_deviation(vae: AutoencoderKL, images: Tensor) -> float:
    """The standard deviation of the latents over everything."""
    return float(encode(vae, images).std())


def _whole(images: Tensor, count: int) -> Tensor:
    chosen = images[torch.randint(len(images), (count,))]
    return chosen.contiguous(memory_format=torch.channels_last)


def _crops(images: Tensor, centres: Tensor, count: int) -> Tensor:
    """Crops whose middle lies on or near the thing: away from it there is nothing to learn."""
    rows = torch.randint(len(images), (count,))
    corners = (centres[rows] + torch.empty(count, 2).uniform_(-18, 18) - CROP / 2).round().long()
    corners = corners.clamp(0, images.shape[-1] - CROP)
    crops = [
        images[row, :, y : y + CROP, x : x + CROP] for row, (x, y) in zip(rows.tolist(), corners.tolist(), strict=True)
    ]
    return torch.stack(crops).contiguous(memory_format=torch.channels_last)
