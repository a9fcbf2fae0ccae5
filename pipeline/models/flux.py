"""FLUX.1, Chroma, FLUX.2: transformers over one sequence of text and of latents in 2x2 patches."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .denoisers import Guided
from .text import Text


class FluxTransformer(Guided):
    """FLUX.1: T5's states padded to their full length and without a mask, CLIP's pooled vector, latents in 2x2
    patches.
    """

    @staticmethod
    def encode(pipe: Any, captions: list[str]) -> Text:
        states, pooled, _ = pipe.encode_prompt(captions, None, device=pipe.text_encoder.device)
        return Text(states, pooled)

    def predict(self, pipe: Any, noisy: Tensor, timesteps: Tensor, text: Text, sizes: Tensor | None = None) -> Tensor:
        packed, positions = _packed(pipe, noisy)
        output = pipe.transformer(
            hidden_states=packed, timestep=timesteps.to(noisy.dtype) / 1000,
            guidance=self.values(pipe.transformer, noisy), pooled_projections=text.pooled,
            encoder_hidden_states=text.states, return_dict=False, **positions, txt_ids=_no_positions(text),
        )[0]  # fmt: skip
        return _unpacked(pipe, output, noisy)


class ChromaTransformer:
    """Chroma: FLUX's latents and T5; the mask includes the text and one token of padding.

    Its blocks must be checkpointed here: diffusers 0.42 leaves out the mask of the single blocks when it does so.
    """

    checkpointed = ("transformer_blocks", "single_transformer_blocks")

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


class Flux2Transformer(Guided):
    """FLUX.2: states of three layers of a language model side by side, at their full length and without a mask.

    Klein has Qwen3, dev has Mistral and a guidance value. Latents in 2x2 patches; text and latents have four position
    ids each.
    """

    @staticmethod
    def encode(pipe: Any, captions: list[str]) -> Text:
        states, _ = pipe.encode_prompt(captions, device=pipe.text_encoder.device)
        return Text(states)

    def predict(self, pipe: Any, noisy: Tensor, timesteps: Tensor, text: Text, sizes: Tensor | None = None) -> Tensor:
        patches = pipe._patchify_latents(noisy)
        output = pipe.transformer(
            hidden_states=pipe._pack_latents(patches), timestep=timesteps.to(noisy.dtype) / 1000,
            guidance=self.values(pipe.transformer, noisy), encoder_hidden_states=text.states, return_dict=False,
            txt_ids=pipe._prepare_text_ids(text.states).to(noisy.device),
            img_ids=pipe._prepare_latent_ids(patches).to(noisy.device),
        )[0]  # fmt: skip
        prediction: Tensor = pipe._unpatchify_latents(output.transpose(1, 2).reshape(patches.shape))
        return prediction


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
