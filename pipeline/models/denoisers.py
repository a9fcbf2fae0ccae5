"""How each kind of denoiser is called, and how captions are encoded for it: two functions per kind."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from .text import Text, lengths_of, of_lengths


class Denoiser(Protocol):
    """The interface of a kind of denoiser."""

    def encode(self, pipe: Any, captions: list[str]) -> Text:
        """Captions encoded by the pipeline's own prompt encoding, with gradients, as in generation."""

    def predict(self, pipe: Any, noisy: Tensor, timesteps: Tensor, text: Text, sizes: Tensor | None = None) -> Tensor:
        """The denoiser's prediction for (batch, channels, height, width) latents at (batch,) timesteps.

        `sizes` is `Batch.sizes`, for models conditioned on sizes; by default uncropped images of the latents' size.
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
    """Stable Diffusion XL: the states of two encoders, the pooled vector of the second, and sizes as time ids."""

    @staticmethod
    def encode(pipe: Any, captions: list[str]) -> Text:
        states, _, pooled, _ = pipe.encode_prompt(
            captions, device=pipe.text_encoder_2.device, num_images_per_prompt=1, do_classifier_free_guidance=False
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


@dataclass(frozen=True)
class FluxTransformer:
    """FLUX.1: T5's states padded to their full length and without a mask, CLIP's pooled vector, latents in 2x2 patches.

    `guidance` is the value given to models distilled for it (dev); others (schnell) take none.
    """

    guidance: float = 1.0

    @staticmethod
    def encode(pipe: Any, captions: list[str]) -> Text:
        states, pooled, _ = pipe.encode_prompt(captions, None, device=pipe.text_encoder.device)
        return Text(states, pooled)

    def predict(self, pipe: Any, noisy: Tensor, timesteps: Tensor, text: Text, sizes: Tensor | None = None) -> Tensor:
        guidance = None
        if pipe.transformer.config.guidance_embeds:
            guidance = torch.full((len(noisy),), self.guidance, device=noisy.device, dtype=noisy.dtype)
        packed, positions = _packed(pipe, noisy)
        output = pipe.transformer(
            hidden_states=packed, timestep=timesteps.to(noisy.dtype) / 1000, guidance=guidance,
            pooled_projections=text.pooled, encoder_hidden_states=text.states, return_dict=False, **positions,
            txt_ids=_no_positions(text),
        )[0]  # fmt: skip
        return _unpacked(pipe, output, noisy)


class ChromaTransformer:
    """Chroma: FLUX's latents and T5; the mask includes the text and one token of padding."""

    @staticmethod
    def encode(pipe: Any, captions: list[str]) -> Text:
        states, _, mask, *_ = pipe.encode_prompt(
            captions, device=pipe.text_encoder.device, do_classifier_free_guidance=False
        )
        return Text(states, mask=mask.bool())

    @staticmethod
    def predict(pipe: Any, noisy: Tensor, timesteps: Tensor, text: Text, sizes: Tensor | None = None) -> Tensor:
        packed, positions = _packed(pipe, noisy)
        assert text.mask is not None
        weights = text.mask.to(noisy.dtype)  # numbers, as in the pipeline: attention adds them
        mask = pipe._prepare_attention_mask(len(noisy), packed.shape[1], noisy.dtype, weights)
        output = pipe.transformer(
            hidden_states=packed, timestep=timesteps.to(noisy.dtype) / 1000, encoder_hidden_states=text.states,
            attention_mask=mask, return_dict=False, **positions, txt_ids=_no_positions(text),
        )[0]  # fmt: skip
        return _unpacked(pipe, output, noisy)


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


class ZImageTransformer:
    """Z-Image: Qwen3's second last states of a chat template, each of its own length; time and output are reversed."""

    @staticmethod
    def encode(pipe: Any, captions: list[str]) -> Text:
        copied = list(captions)  # the pipeline writes its templates into the list
        states, _ = pipe.encode_prompt(copied, device=pipe.text_encoder.device, do_classifier_free_guidance=False)
        return of_lengths(states)

    @staticmethod
    def predict(pipe: Any, noisy: Tensor, timesteps: Tensor, text: Text, sizes: Tensor | None = None) -> Tensor:
        frames = list(noisy.unsqueeze(2).unbind(0))
        outputs = pipe.transformer(frames, (1000 - timesteps) / 1000, lengths_of(text), return_dict=False)[0]
        return -torch.stack(list(outputs)).squeeze(2)


def _packed(pipe: Any, noisy: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Latents as a sequence of 2x2 patches, and the position of each."""
    batch, channels, height, width = noisy.shape
    ids = pipe._prepare_latent_image_ids(batch, height // 2, width // 2, noisy.device, noisy.dtype)
    return pipe._pack_latents(noisy, batch, channels, height, width), {"img_ids": ids}


def _unpacked(pipe: Any, output: Tensor, noisy: Tensor) -> Tensor:
    """The transformer's output in the shape of the latents."""
    scale = pipe.vae_scale_factor
    prediction: Tensor = pipe._unpack_latents(output, noisy.shape[-2] * scale, noisy.shape[-1] * scale, scale)
    return prediction


def _no_positions(text: Text) -> Tensor:
    """Position ids of the text, which has none in FLUX and Chroma: zeros (tokens, 3)."""
    return torch.zeros(text.states.shape[1], 3, device=text.states.device, dtype=text.states.dtype)


DENOISERS: dict[str, Denoiser] = {
    "unet": UNet(), "unet_xl": UNetXL(), "joint_transformer": JointTransformer(), "flux_transformer": FluxTransformer(),
    "chroma_transformer": ChromaTransformer(), "pixart_transformer": PixArtTransformer(),
    "z_image_transformer": ZImageTransformer(),
}  # fmt: skip


def denoiser_for(kind: str, guidance: float = 1.0) -> Denoiser:
    """The functions of a kind of denoiser; models distilled for guidance get this value."""
    denoiser = DENOISERS[kind]
    return replace(denoiser, guidance=guidance) if isinstance(denoiser, FluxTransformer) else denoiser
