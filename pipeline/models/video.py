"""Transformers for video, trained on images as videos of one frame: HunyuanVideo, Wan and Anima."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .denoisers import Guided
from .text import Text


class HunyuanVideoTransformer(Guided):
    """HunyuanVideo: Llama's states of the third last layer after a system prompt, under their mask; CLIP's pooled
    vector; a guidance value.
    """

    @staticmethod
    def encode(pipe: Any, captions: list[str]) -> Text:
        states, pooled, mask = pipe.encode_prompt(captions, device=pipe.text_encoder.device)
        return Text(states, pooled, mask.bool())

    def predict(self, pipe: Any, noisy: Tensor, timesteps: Tensor, text: Text, sizes: Tensor | None = None) -> Tensor:
        guidance = self.values(pipe.transformer, noisy)
        assert text.mask is not None
        output: Tensor = pipe.transformer(
            hidden_states=noisy.unsqueeze(2), timestep=timesteps.to(noisy.dtype), encoder_hidden_states=text.states,
            encoder_attention_mask=text.mask.long(), pooled_projections=text.pooled,
            guidance=None if guidance is None else guidance * 1000, return_dict=False,
        )[0]  # fmt: skip
        return output.squeeze(2)


class WanTransformer:
    """Wan 2.1 and 2.2: cross-attention on UMT5's states, zeros after the text and without a mask.

    Wan 2.2 has two denoisers: one for timesteps from a boundary on, the other below it.
    """

    @staticmethod
    def encode(pipe: Any, captions: list[str]) -> Text:
        states, _ = pipe.encode_prompt(
            captions, do_classifier_free_guidance=False, max_sequence_length=512, device=pipe.text_encoder.device
        )
        return Text(states)

    @staticmethod
    def predict(pipe: Any, noisy: Tensor, timesteps: Tensor, text: Text, sizes: Tensor | None = None) -> Tensor:
        boundary = (pipe.config.boundary_ratio or 0) * 1000
        prediction = torch.empty_like(noisy)
        for model, chosen in ((pipe.transformer, timesteps >= boundary), (pipe.transformer_2, timesteps < boundary)):
            if bool(chosen.any()):
                part = _predict(pipe, model, noisy[chosen], timesteps[chosen], text.states[chosen])
                prediction = prediction.index_put((chosen.nonzero(as_tuple=True)[0],), part)
        return prediction


def _predict(pipe: Any, model: Any, noisy: Tensor, timesteps: Tensor, states: Tensor) -> Tensor:
    """One denoiser's prediction; models that also start from an image (`expand_timesteps`) take a time per patch."""
    if pipe.config.expand_timesteps:
        height, width = noisy.shape[-2:]
        timesteps = timesteps.unsqueeze(1).expand(-1, (height // 2) * (width // 2))
    output: Tensor = model(
        hidden_states=noisy.unsqueeze(2), timestep=timesteps, encoder_hidden_states=states, return_dict=False
    )[0]
    return output.squeeze(2)


class AnimaTransformer:
    """Anima: the video model Cosmos with text of a conditioner, in which each token of T5 attends to Qwen3's states.

    Zeros follow the text, without a mask. The padding mask, in pixels, says that no part of the image is padding.
    """

    @staticmethod
    def encode(pipe: Any, captions: list[str]) -> Text:
        from diffusers.modular_pipelines.anima.encoders import AnimaTextEncoderStep

        made = AnimaTextEncoderStep.encode_prompt(pipe, captions, prepare_unconditional_embeds=False)
        states = pipe.text_conditioner(
            made["qwen_prompt_embeds"], made["t5_input_ids"], made["t5_attention_mask"], made["qwen_attention_mask"]
        )
        return Text(states)

    @staticmethod
    def predict(pipe: Any, noisy: Tensor, timesteps: Tensor, text: Text, sizes: Tensor | None = None) -> Tensor:
        height, width = (side * pipe.vae_scale_factor for side in noisy.shape[-2:])
        output: Tensor = pipe.transformer(
            hidden_states=noisy.unsqueeze(2), timestep=timesteps.to(noisy.dtype) / 1000,
            encoder_hidden_states=text.states, padding_mask=noisy.new_zeros(1, 1, height, width), return_dict=False,
        )[0]  # fmt: skip
        return output.squeeze(2)
