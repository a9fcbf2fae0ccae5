"""Which layer of a text encoder is read."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ...converters.families import Family
from ..errors import StageError


def skip_layers(pipe: Any, family: Family, clip_skip: int) -> None:
    """Have every prompt, in training and in pictures, read at the `clip_skip`-th layer from the end (1: the last).

    The layers behind it stay in the encoder, for exports, and hand on what they are given. (Diffusers' own `clip_skip`
    counts from 0 and looks for a part that the encoders of transformers 5 do not have.) Raises StageError where the
    family or the encoder has no layer to spare.
    """
    if clip_skip == 1:
        return
    if not family.clip_skip:
        raise StageError(
            f"model.clip_skip = {clip_skip}: {family.title} has one layer that is read; leave clip_skip out"
        )
    layers = encoder_layers(pipe.text_encoder)
    if clip_skip > len(layers):
        raise StageError(f"model.clip_skip = {clip_skip}: the text encoder has {len(layers)} layers")
    for layer in layers[len(layers) - clip_skip + 1 :]:
        layer.register_forward_hook(_handed_on)


def encoder_layers(encoder: nn.Module) -> list[nn.Module]:
    """The layers of a CLIP text encoder, the first one first."""
    return list(next(part for name, part in encoder.named_modules() if name.endswith("encoder.layers")).children())


def _handed_on(layer: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
    return inputs[0] if isinstance(output, torch.Tensor) else (inputs[0], *output[1:])
