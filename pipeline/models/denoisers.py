"""How each kind of denoiser is called, and how captions are encoded for it: two functions per kind."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Protocol

from torch import Tensor

from .flux import ChromaTransformer, Flux2Transformer, FluxTransformer
from .guided import Guided
from .language_models import (
    HiDreamTransformer,
    KreaTransformer,
    LuminaTransformer,
    QwenImageTransformer,
    SanaTransformer,
    ZImageTransformer,
)
from .text import Text
from .unets import CascadePrior, JointTransformer, PixArtTransformer, UNet, UNetXL
from .video import AnimaTransformer, HunyuanVideoTransformer, WanTransformer


class Denoiser(Protocol):
    """The interface of a kind of denoiser."""

    def encode(self, pipe: Any, captions: list[str]) -> Text:
        """Captions encoded by the pipeline's own prompt encoding, with gradients, as in generation."""

    def predict(self, pipe: Any, noisy: Tensor, timesteps: Tensor, text: Text, sizes: Tensor | None = None) -> Tensor:
        """The denoiser's prediction for (batch, channels, height, width) latents at (batch,) timesteps.

        `sizes` is `Batch.sizes`, for models conditioned on sizes; by default uncropped images of the latents' size.
        """


DENOISERS: dict[str, Denoiser] = {
    "unet": UNet(), "unet_xl": UNetXL(), "joint_transformer": JointTransformer(), "flux_transformer": FluxTransformer(),
    "chroma_transformer": ChromaTransformer(), "flux2_transformer": Flux2Transformer(),
    "pixart_transformer": PixArtTransformer(), "z_image_transformer": ZImageTransformer(),
    "lumina_transformer": LuminaTransformer(), "sana_transformer": SanaTransformer(),
    "qwen_image_transformer": QwenImageTransformer(), "krea_transformer": KreaTransformer(),
    "hidream_transformer": HiDreamTransformer(), "hunyuan_video_transformer": HunyuanVideoTransformer(),
    "wan_transformer": WanTransformer(), "anima_transformer": AnimaTransformer(), "cascade_prior": CascadePrior(),
}  # fmt: skip


def denoiser_for(kind: str, guidance: float = 1.0) -> Denoiser:
    """The functions of a kind of denoiser; models distilled for guidance get this value."""
    denoiser = DENOISERS[kind]
    return replace(denoiser, guidance=guidance) if isinstance(denoiser, Guided) else denoiser
