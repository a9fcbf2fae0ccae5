"""VAEs: images to latents, and the normalization that each family's denoiser expects."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # plans and checks read configs without torch
    from torch import Tensor

_LEVELS = ("block_out_channels", "encoder_block_out_channels", "dim_mult")  # one entry for each size of the image
_VIDEO = ("temporal_compression_ratio", "temperal_downsample")  # only VAEs for video have one of these


def vae_scale(config: Mapping[str, Any]) -> int | Fraction:
    """Pixels per latent, in each direction, by the VAE's config; of Stable Cascade's image encoder 128 / 3."""
    if "compression" in config:
        return Fraction(*config["compression"])
    key = next(key for key in _LEVELS if config.get(key))
    patch = int(config.get("patch_size") or 1) if key == "dim_mult" else 1  # of Wan 2.2 5B's
    return int(2 ** (len(config[key]) - 1)) * patch


def latent_channels(config: Mapping[str, Any]) -> int:
    """Channels of the latents, by the VAE's config."""
    return int(config.get("latent_channels") or config["z_dim"])


def encode_image(vae: Any, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation of an image's latents, each (channels, height, width) float32 on the CPU.

    `pixels` is (3, height, width) from -1 to 1. VAEs without a distribution (AutoencoderDC, Stable
    Cascade's image encoder) have a deviation of 0. A
    VAE for video encodes the image as one frame.
    """
    import torch

    given = pixels.unsqueeze(0).to(vae.device, vae.dtype)
    video = any(key in vae.config for key in _VIDEO)
    encoded = vae.encode(given.unsqueeze(2) if video else given)
    if hasattr(encoded, "latent_dist"):
        parts = encoded.latent_dist.mean[0], encoded.latent_dist.std[0]
    else:
        parts = encoded.latent[0], torch.zeros_like(encoded.latent[0])
    mean, deviation = (part.squeeze(1) if video else part for part in parts)
    return mean.float().cpu(), deviation.float().cpu()


@dataclass(frozen=True, eq=False)
class Normalization:
    """Latents of the VAE to those of the denoiser: `(latents - shift) * factor`.

    Both are one number, or (channels, patch, patch) float32: one value for each channel and position in a patch.
    """

    shift: float | Tensor
    factor: float | Tensor

    def __call__(self, latents: Tensor) -> Tensor:
        """(batch, channels, height, width) latents, normalized."""
        return (latents - _tiled(self.shift, latents)) * _tiled(self.factor, latents)


def _tiled(value: float | Tensor, latents: Tensor) -> float | Tensor:
    if isinstance(value, float):
        return value
    height, width = latents.shape[-2:]
    return value.repeat(1, height // value.shape[-2], width // value.shape[-1]).to(latents.device)


def normalization(vae: Any) -> Normalization:
    """The normalization of a VAE, as its pipelines undo it before they decode.

    One shift and factor (Stable Diffusion, FLUX.1, Sana), a mean and deviation for each channel (Qwen-Image, Wan), or
    the running statistics of a batch norm over 2x2 patches (FLUX.2).
    """
    import torch

    config = vae.config
    factor = float(config.get("scaling_factor") or 1.0)
    if hasattr(vae, "bn"):
        deviation = (vae.bn.running_var.float() + config.batch_norm_eps).sqrt()
        mean, inverse = (one.reshape(-1, 2, 2).cpu() for one in (vae.bn.running_mean.float(), 1 / deviation))
        return Normalization(mean, inverse)
    if config.get("latents_mean") is not None and config.get("latents_std") is not None:
        mean, deviation = (torch.tensor(config[key]).reshape(-1, 1, 1) for key in ("latents_mean", "latents_std"))
        return Normalization(mean, factor / deviation)
    return Normalization(float(config.get("shift_factor") or 0.0), factor)
