"""Stable Diffusion 1.x, 2.x, XL and 3, PixArt, Stable Cascade: how captions are encoded, the denoiser called."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..embeddings.chunks import even_chunks
from .text import Text


class UNet:
    """Stable Diffusion 1.x and 2.x: cross-attention on one encoder's states."""

    @staticmethod
    def encode(pipe: Any, captions: list[str]) -> Text:
        with even_chunks(pipe, captions):
            states, _ = pipe.encode_prompt(captions, pipe.text_encoder.device, 1, False)
        return Text(states)

    @staticmethod
    def predict(pipe: Any, noisy: Tensor, timesteps: Tensor, text: Text, sizes: Tensor | None = None) -> Tensor:
        prediction: Tensor = pipe.unet(noisy, timesteps, encoder_hidden_states=text.states, return_dict=False)[0]
        return prediction


class UNetXL:
    """Stable Diffusion XL: the states of two encoders, the pooled vector of the second, and sizes as time ids."""

    @staticmethod
    def encode(pipe: Any, captions: list[str]) -> Text:
        device = pipe.text_encoder_2.device
        with even_chunks(pipe, captions):
            states, _, pooled, _ = pipe.encode_prompt(
                captions, device=device, num_images_per_prompt=1, do_classifier_free_guidance=False
            )
        if pipe.config.force_zeros_for_empty_prompt:  # as the pipeline itself does for an empty negative prompt
            nonempty = torch.tensor([bool(caption) for caption in captions], device=states.device)
            states, pooled = states * nonempty.reshape(-1, 1, 1), pooled * nonempty.reshape(-1, 1)
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
    """Stable Diffusion 3: the states of all encoders in one sequence, and CLIP's pooled vectors.

    A model may lack T5; the pipeline uses zeros instead.
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


class PixArtTransformer:
    """PixArt-alpha and -Sigma: cross-attention on T5's states under its mask; half of the output is a variance."""

    @staticmethod
    def encode(pipe: Any, captions: list[str]) -> Text:
        states, mask, *_ = pipe.encode_prompt(
            captions, do_classifier_free_guidance=False, device=pipe.text_encoder.device
        )
        return Text(states, mask=mask.bool())

    @staticmethod
    def predict(pipe: Any, noisy: Tensor, timesteps: Tensor, text: Text, sizes: Tensor | None = None) -> Tensor:
        output: Tensor = pipe.transformer(
            noisy, encoder_hidden_states=text.states, encoder_attention_mask=text.mask, timestep=timesteps,
            added_cond_kwargs={"resolution": None, "aspect_ratio": None}, return_dict=False,
        )[0]  # fmt: skip
        return output[:, : noisy.shape[1]]


class CascadePrior:
    """The prior of Stable Cascade (stage C): CLIP's states and projected pooled vector, and zeros for an image prompt.

    Its time is the ratio of noise, from 0 to 1.
    """

    @staticmethod
    def encode(pipe: Any, captions: list[str]) -> Text:
        states, pooled, _, _ = pipe.encode_prompt(
            device=pipe.text_encoder.device, batch_size=len(captions), num_images_per_prompt=1,
            do_classifier_free_guidance=False, prompt=captions,
        )  # fmt: skip
        return Text(states, pooled.squeeze(1))

    @staticmethod
    def predict(pipe: Any, noisy: Tensor, timesteps: Tensor, text: Text, sizes: Tensor | None = None) -> Tensor:
        assert text.pooled is not None
        prediction: Tensor = pipe.prior(
            sample=noisy, timestep_ratio=timesteps.to(noisy.dtype), clip_text_pooled=text.pooled.unsqueeze(1),
            clip_text=text.states, clip_img=noisy.new_zeros(len(noisy), 1, pipe.prior.config.clip_image_in_channels),
            return_dict=False,
        )[0]  # fmt: skip
        return prediction
