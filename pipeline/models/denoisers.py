"""How each kind of denoiser is called, and how captions are encoded for it: two functions per kind."""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any, Protocol

import torch
from torch import Tensor

from .text import Text


class Denoiser(Protocol):
    """The interface of a kind of denoiser."""

    def encode(self, pipe: Any, captions: list[str]) -> Text:
        """Captions encoded by the pipeline's own prompt encoding, with gradients, as in generation."""

    def predict(self, pipe: Any, noisy: Tensor, timesteps: Tensor, text: Text, sizes: Tensor | None = None) -> Tensor:
        """The denoiser's prediction for (batch, channels, height, width) latents at (batch,) timesteps.

        `sizes` is `Batch.sizes`, for models conditioned on sizes; by default uncropped images of the latents' size.
        """


@dataclass(frozen=True)
class Guided:
    """`guidance` is the value given to models that are distilled for it (FLUX.1 dev); others (schnell) take none."""

    guidance: float = 1.0

    def values(self, transformer: Any, noisy: Tensor) -> Tensor | None:
        """The guidance of each image, (batch,), or None for a model without this input."""
        if not transformer.config.guidance_embeds:
            return None
        return torch.full((len(noisy),), self.guidance, device=noisy.device, dtype=noisy.dtype)


# kind: the module beside this one, and the class in it
CLASSES = {
    "unet": ("unets", "UNet"), "unet_xl": ("unets", "UNetXL"), "joint_transformer": ("unets", "JointTransformer"),
    "pixart_transformer": ("unets", "PixArtTransformer"), "cascade_prior": ("unets", "CascadePrior"),
    "flux_transformer": ("flux", "FluxTransformer"), "chroma_transformer": ("flux", "ChromaTransformer"),
    "flux2_transformer": ("flux", "Flux2Transformer"), "z_image_transformer": ("language_models", "ZImageTransformer"),
    "lumina_transformer": ("language_models", "LuminaTransformer"),
    "sana_transformer": ("language_models", "SanaTransformer"),
    "qwen_image_transformer": ("language_models", "QwenImageTransformer"),
    "krea_transformer": ("language_models", "KreaTransformer"),
    "hidream_transformer": ("language_models", "HiDreamTransformer"),
    "hunyuan_video_transformer": ("video", "HunyuanVideoTransformer"), "wan_transformer": ("video", "WanTransformer"),
    "anima_transformer": ("video", "AnimaTransformer"),
}  # fmt: skip


class _Denoisers(dict[str, Denoiser]):
    """The functions of each kind, imported when they are first used. KeyError for an unknown kind."""

    def __missing__(self, kind: str) -> Denoiser:
        module, name = CLASSES[kind]
        made: Denoiser = getattr(import_module(f".{module}", __package__), name)()
        self[kind] = made
        return made


DENOISERS = _Denoisers()


def denoiser_for(kind: str, guidance: float = 1.0) -> Denoiser:
    """The functions of a kind of denoiser; models distilled for guidance get this value."""
    denoiser = DENOISERS[kind]
    return replace(denoiser, guidance=guidance) if isinstance(denoiser, Guided) else denoiser
