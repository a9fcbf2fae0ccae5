"""The image encoder of Stable Cascade in place of a VAE: torchvision's EfficientNetV2-S and a projection."""

from __future__ import annotations

from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from .torchvision_problem import hidden_because

INSTALL = "pip install 'pivotune[cascade]'"
# What a VAE's config would say; all of it affects the latents. The prior was trained on images at 3/4 of the size that
# its decoder draws, of which 32x32 pixels are one latent: 24x24 latents for an image of 1024 pixels.
CONFIG: dict[str, Any] = {
    "_class_name": "EfficientNetEncoder", "backbone": "efficientnet_v2_s", "latent_channels": 16,
    "compression": (128, 3), "image_scale": (3, 4), "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225),
}  # fmt: skip
FEATURES = 1280  # channels of the backbone's output


def torchvision_problem() -> str | None:
    """Why torchvision cannot be used, and what to do; None if it can."""
    broken = f"install the build that matches torch {torch.__version__}"
    if why := hidden_because():
        return f"torchvision cannot be imported ({why}); {broken}"
    if find_spec("torchvision") is None:
        return f"torchvision is not installed; {INSTALL}"
    try:
        from torchvision.models import efficientnet_v2_s  # noqa: F401
    except Exception as error:  # noqa: BLE001 (a build for another torch raises RuntimeError, among others)
        why = (str(error).strip() or type(error).__name__).splitlines()[0]
        return f"torchvision cannot be imported ({why}); {broken}"
    return None


class EfficientNetEncoder(nn.Module):
    """Images to latents without a distribution, with the interface of diffusers' VAEs that `vae.encode_image` uses.

    Its weights are named as in `effnet_encoder.safetensors`: `backbone.…` as in torchvision, `mapper.…`.
    """

    def __init__(self) -> None:
        """Random weights. ImportError or RuntimeError without a usable torchvision (see `torchvision_problem`)."""
        from torchvision.models import efficientnet_v2_s

        super().__init__()
        self.config = CONFIG
        self.backbone = efficientnet_v2_s(weights=None).features
        channels = CONFIG["latent_channels"]
        self.mapper = nn.Sequential(
            nn.Conv2d(FEATURES, channels, kernel_size=1, bias=False), nn.BatchNorm2d(channels, affine=False)
        )

    @property
    def dtype(self) -> torch.dtype:
        """dtype of the weights."""
        return next(self.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return next(self.parameters()).device

    def encode(self, pixels: Tensor) -> SimpleNamespace:
        """Latents (batch, 16, height * 3 / 128, width * 3 / 128) as `latent`.

        `pixels` (batch, 3, height, width) are from -1 to 1, with sides that are multiples of 128.
        """
        up, down = CONFIG["image_scale"]
        size = [side * up // down for side in pixels.shape[-2:]]
        scaled = functional.interpolate((pixels + 1) / 2, size=size, mode="bilinear", antialias=True)
        mean, std = (pixels.new_tensor(CONFIG[key]).reshape(3, 1, 1) for key in ("mean", "std"))
        return SimpleNamespace(latent=self.mapper(self.backbone((scaled - mean) / std)))
