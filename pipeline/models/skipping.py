"""Layers of text encoders that are skipped: by a recipe's clip_skip, or because the pipeline does not use them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ...converters.families import Family
from ..errors import StageError
from ..text import count_of


def skip_layers(pipe: Any, family: Family, clip_skip: int) -> None:
    """Encode prompts, in training and in sample images, at the `clip_skip`-th layer from the end (1: the last).

    The layers behind it stay in the encoder, for exports, and return their input. (Diffusers' own `clip_skip` counts
    from 0 and needs a part that the encoders of transformers 5 do not have.) Raises StageError if the family does not
    support it, or the encoder has fewer layers.
    """
    if clip_skip == 1:
        return
    if not family.clip_skip:
        raise StageError(f"model.clip_skip = {clip_skip}: not supported for {family.title}; remove it")
    layers = encoder_layers(pipe.text_encoder)
    if clip_skip > len(layers):
        raise StageError(f"model.clip_skip = {clip_skip}: the text encoder has {count_of(len(layers), 'layer')}")
    for layer in layers[len(layers) - clip_skip + 1 :]:
        layer.register_forward_hook(_return_input)


def encoder_layers(encoder: nn.Module) -> list[nn.Module]:
    """The layers of a CLIP text encoder, the first one first."""
    return list(next(part for name, part in encoder.named_modules() if name.endswith("encoder.layers")).children())


def _return_input(layer: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
    return inputs[0] if isinstance(output, torch.Tensor) else (inputs[0], *output[1:])


def skip_unused(encoder: nn.Module, last_state: int | None) -> None:
    """Skip what no prompt needs: the layers of a language model after its last used hidden state, and its head.

    `last_state` is an index of transformers' `hidden_states`, where 0 is the token table's output; None keeps all
    layers. One more layer stays, as the state after the last layer is normalized. The weights stay, for exports.
    """
    head = getattr(encoder, "lm_head", None)
    if isinstance(head, nn.Linear):
        head.forward = _no_logits  # type: ignore[assignment, method-assign]
    if last_state is None:
        return
    decoder = encoder.get_decoder()  # type: ignore[operator]
    layers = list(decoder.layers)
    used = last_state if last_state >= 0 else len(layers) + 1 + last_state
    for layer in layers[used + 1 :]:
        layer.forward = _unchanged


def _no_logits(states: Tensor) -> Tensor:
    return states.new_zeros(*states.shape[:-1], 0)


def _unchanged(hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
    return hidden_states
