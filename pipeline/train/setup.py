"""What a train stage puts together before its first step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..models.load import Model
from ..recipe.captions import read_captions
from ..recipe.model import Recipe
from .batches import Example
from .latents import Latents, encode_pictures
from .lora import add_lora
from .weights import WeightSettings, WeightTrainer


def lora_trainer(
    model: Model, options: Mapping[str, Any], optimizer: Mapping[str, Any], factor: Callable[[int], float], *,
    clip_norm: float, seed: int,
) -> WeightTrainer:  # fmt: skip
    """A LoRA on the denoiser with an optimizer of its own: the stage's kind and betas, the LoRA's rate and decay."""

    def adamw(parameters: Sequence[Tensor]) -> torch.optim.Optimizer:
        return torch.optim.AdamW(
            parameters, lr=options["learning_rate"], betas=tuple(optimizer["betas"]), eps=optimizer["eps"],
            weight_decay=options["weight_decay"],
        )  # fmt: skip

    parameters = add_lora(model.denoiser, options, seed)
    settings = WeightSettings(adamw, options["learning_rate"], factor, clip_norm)
    return WeightTrainer("lora.denoiser", parameters, settings, text=False)


def examples_of(recipe: Recipe) -> list[Example]:
    """Every picture of every concept with its captions, repeated as its concept says, in a fixed order."""
    examples = []
    for concept in recipe.concepts:
        examples += [Example(path, tuple(captions)) for path, captions in read_captions(concept)] * concept.repeats
    return examples


def native_resolution(model: Model) -> int:
    """The side of the pictures that the model was made for, in pixels."""
    return int(model.denoiser.config.sample_size * model.pipe.vae_scale_factor)


def latents_of(model: Model, examples: list[Example], resolution: int, *, flip: bool) -> tuple[Latents, Latents | None]:
    """Each distinct picture encoded once, plain and, with `flip`, mirrored; repeats share their latents."""
    paths = [example.picture for example in examples]
    distinct = list(dict.fromkeys(paths))
    place = {path: number for number, path in enumerate(distinct)}
    order = torch.tensor([place[path] for path in paths])

    def encoded(mirrored: bool) -> Latents:
        once = encode_pictures(model.pipe.vae, distinct, resolution, flip=mirrored)
        return replace(once, mean=once.mean[order], deviation=once.deviation[order])

    return encoded(False), encoded(True) if flip else None
