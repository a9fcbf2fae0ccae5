"""What a train stage puts together before its first step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..models.load import Model
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


def native_resolution(model: Model) -> int:
    """The side of the pictures that the model was made for, in pixels."""
    return int(model.denoiser.config.sample_size * model.pipe.vae_scale_factor)
