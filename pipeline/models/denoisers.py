"""How each kind of denoiser is called: the same three plain functions for each, chosen by the family's data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Text:
    """Encoded captions: `states` (batch, tokens, width) and, where the model has one, `pooled` (batch, width)."""

    states: Tensor
    pooled: Tensor | None = None


class Denoiser(Protocol):
    """What a training step asks of a kind of denoiser."""

    def encode(self, pipe: Any, captions: list[str]) -> Text:
        """Captions through the pipeline's own prompt encoding, with gradients: what is trained is what is used."""

    def predict(self, pipe: Any, noisy: Tensor, timesteps: Tensor, text: Text, sizes: Tensor | None = None) -> Tensor:
        """The denoiser's answer for (batch, channels, height, width) latents at (batch,) time steps.

        `sizes` is `Batch.sizes`, for models that are told them; left out: whole pictures of the latents' size.
        """


class UNet:
    """Stable Diffusion 1.x and 2.x: cross-attention on one encoder's states."""

    @staticmethod
    def encode(pipe: Any, captions: list[str]) -> Text:
        states, _ = pipe.encode_prompt(captions, pipe.text_encoder.device, 1, False)
        return Text(states)

    @staticmethod
    def predict(pipe: Any, noisy: Tensor, timesteps: Tensor, text: Text, sizes: Tensor | None = None) -> Tensor:
        prediction: Tensor = pipe.unet(noisy, timesteps, encoder_hidden_states=text.states, return_dict=False)[0]
        return prediction


class UNetXL:
    """Stable Diffusion XL: two encoders side by side, the second's pooled vector, and sizes as time ids."""

    @staticmethod
    def encode(pipe: Any, captions: list[str]) -> Text:
        states, _, pooled, _ = pipe.encode_prompt(
            captions, device=pipe.text_encoder_2.device, num_images_per_prompt=1, do_classifier_free_guidance=False
        )
        if pipe.config.force_zeros_for_empty_prompt:  # as the pipeline itself does for an empty negative prompt
            said = torch.tensor([bool(caption) for caption in captions], device=states.device)
            states, pooled = states * said.reshape(-1, 1, 1), pooled * said.reshape(-1, 1)
        return Text(states, pooled)

    @staticmethod
    def predict(pipe: Any, noisy: Tensor, timesteps: Tensor, text: Text, sizes: Tensor | None = None) -> Tensor:
        height, width = (side * pipe.vae_scale_factor for side in noisy.shape[-2:])
        if sizes is None:
            sizes = torch.tensor([height, width, 0, 0, height, width]).expand(len(noisy), -1)
        added = {"text_embeds": text.pooled, "time_ids": sizes.to(noisy.device, text.states.dtype)}
        prediction: Tensor = pipe.unet(
            noisy, timesteps, encoder_hidden_states=text.states, added_cond_kwargs=added, return_dict=False
        )[0]
        return prediction


class JointTransformer:
    """Stable Diffusion 3: all encoders' states in one sequence, CLIP's pooled vectors beside them.

    A model may lack T5; the pipeline puts zeros in its place.
    """

    @staticmethod
    def encode(pipe: Any, captions: list[str]) -> Text:
        states, _, pooled, _ = pipe.encode_prompt(
            captions, None, None, device=pipe.text_encoder.device, do_classifier_free_guidance=False
        )
        return Text(states, pooled)

    @staticmethod
    def predict(pipe: Any, noisy: Tensor, timesteps: Tensor, text: Text, sizes: Tensor | None = None) -> Tensor:
        prediction: Tensor = pipe.transformer(
            noisy, encoder_hidden_states=text.states, pooled_projections=text.pooled, timestep=timesteps,
            return_dict=False,
        )[0]  # fmt: skip
        return prediction


DENOISERS: dict[str, Denoiser] = {"unet": UNet(), "unet_xl": UNetXL(), "joint_transformer": JointTransformer()}
