"""Transformers whose captions are encoded by a language model: Z-Image, Lumina 2, Sana, Qwen-Image, Krea 2, HiDream."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor

from .text import Text, lengths_of, of_lengths, with_blank


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


class LuminaTransformer:
    """Lumina 2: Gemma's second last states under their mask; time and output are reversed.

    Captions follow a system prompt; an empty one does not, as the pipeline's negative prompt.
    """

    @staticmethod
    def encode(pipe: Any, captions: list[str]) -> Text:
        states, mask, *_ = pipe.encode_prompt(captions, False, device=pipe.text_encoder.device)
        text = Text(states, mask=mask.bool())
        if all(captions):
            return text
        _, _, blank, mask = pipe.encode_prompt([""], True, "", device=pipe.text_encoder.device)
        return with_blank(text, Text(blank, mask=mask.bool()), captions)

    @staticmethod
    def predict(pipe: Any, noisy: Tensor, timesteps: Tensor, text: Text, sizes: Tensor | None = None) -> Tensor:
        output: Tensor = pipe.transformer(
            hidden_states=noisy, timestep=1 - timesteps / 1000, encoder_hidden_states=text.states,
            encoder_attention_mask=text.mask, return_dict=False,
        )[0]  # fmt: skip
        return -output


class SanaTransformer:
    """Sana: cross-attention on Gemma's states under their mask.

    Captions follow the pipeline's instruction, of which the begin token is kept; an empty one does not, as the
    pipeline's negative prompt.
    """

    @staticmethod
    def encode(pipe: Any, captions: list[str]) -> Text:
        instruction = inspect.signature(type(pipe).__call__).parameters["complex_human_instruction"].default
        given: dict[str, Any] = {"do_classifier_free_guidance": False, "device": pipe.text_encoder.device}
        states, mask, *_ = pipe.encode_prompt(captions, **given, complex_human_instruction=instruction)
        text = Text(states, mask=mask.bool())
        if all(captions):
            return text
        blank, mask, *_ = pipe.encode_prompt([""], **given)
        return with_blank(text, Text(blank, mask=mask.bool()), captions)

    @staticmethod
    def predict(pipe: Any, noisy: Tensor, timesteps: Tensor, text: Text, sizes: Tensor | None = None) -> Tensor:
        assert text.mask is not None
        output: Tensor = pipe.transformer(
            noisy, encoder_hidden_states=text.states, encoder_attention_mask=text.mask.to(noisy.dtype),
            timestep=timesteps * pipe.transformer.config.timestep_scale, return_dict=False,
        )[0]  # fmt: skip
        return output[:, : noisy.shape[1]]


class QwenImageTransformer:
    """Qwen-Image: Qwen2.5-VL's last states after a system prompt, under their mask; latents in 2x2 patches."""

    @staticmethod
    def encode(pipe: Any, captions: list[str]) -> Text:
        states, mask = pipe.encode_prompt(captions, device=pipe.text_encoder.device, max_sequence_length=512)
        return Text(states, mask=torch.ones(states.shape[:2], device=states.device) > 0 if mask is None else mask > 0)

    @staticmethod
    def predict(pipe: Any, noisy: Tensor, timesteps: Tensor, text: Text, sizes: Tensor | None = None) -> Tensor:
        batch, _, height, width = noisy.shape
        output = pipe.transformer(
            hidden_states=pipe._pack_latents(noisy, *noisy.shape), timestep=timesteps.to(noisy.dtype) / 1000,
            encoder_hidden_states=text.states, encoder_hidden_states_mask=text.mask,
            img_shapes=[[(1, height // 2, width // 2)]] * batch, return_dict=False,
        )[0]  # fmt: skip
        return _one_frame(pipe, output, noisy)


class KreaTransformer:
    """Krea 2: states of several layers of Qwen3-VL after a system prompt, under their mask; latents in patches.

    `Text.states` is (batch, tokens, layers, width).
    """

    @staticmethod
    def encode(pipe: Any, captions: list[str]) -> Text:
        states, mask = pipe.encode_prompt(captions, device=pipe.text_encoder.device)
        return Text(states, mask=mask.bool())

    @staticmethod
    def predict(pipe: Any, noisy: Tensor, timesteps: Tensor, text: Text, sizes: Tensor | None = None) -> Tensor:
        height, width = (side // pipe.patch_size for side in noisy.shape[-2:])
        output = pipe.transformer(
            hidden_states=pipe._pack_latents(noisy, *noisy.shape), encoder_hidden_states=text.states,
            timestep=(timesteps / 1000).to(noisy.dtype), encoder_attention_mask=text.mask, return_dict=False,
            position_ids=pipe.prepare_position_ids(text.states.shape[1], height, width, noisy.device),
        )[0]  # fmt: skip
        return _one_frame(pipe, output, noisy)


def _one_frame(pipe: Any, output: Tensor, noisy: Tensor) -> Tensor:
    """A sequence of patches in the shape of the latents; the pipeline unpacks it as a video of one frame."""
    height, width = (side * pipe.vae_scale_factor for side in noisy.shape[-2:])
    unpacked = (height, width, pipe.vae_scale_factor) if hasattr(pipe, "tokenizer_max_length") else (height, width)
    prediction: Tensor = pipe._unpack_latents(output, *unpacked)
    return prediction.squeeze(2)


class HiDreamTransformer:
    """HiDream: pooled vectors of two CLIPs, T5's last states and those of all layers of Llama; the output is reversed.

    `Text.states` is (batch, tokens, 1 + layers, width): T5's states first. Both encoders have the same width and
    length.
    """

    @staticmethod
    def encode(pipe: Any, captions: list[str]) -> Text:
        t5, _, llama, _, pooled, _ = pipe.encode_prompt(
            captions, device=pipe.text_encoder.device, do_classifier_free_guidance=False
        )
        return Text(torch.cat([t5.unsqueeze(2), llama.permute(1, 2, 0, 3)], dim=2), pooled)

    @staticmethod
    def predict(pipe: Any, noisy: Tensor, timesteps: Tensor, text: Text, sizes: Tensor | None = None) -> Tensor:
        output: Tensor = pipe.transformer(
            hidden_states=noisy, timesteps=timesteps, encoder_hidden_states_t5=text.states[:, :, 0],
            encoder_hidden_states_llama3=text.states[:, :, 1:].permute(2, 0, 1, 3), pooled_embeds=text.pooled,
            return_dict=False,
        )[0]  # fmt: skip
        return -output
