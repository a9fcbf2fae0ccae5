"""A part of a pipeline like a text encoder, small enough to be trained in several processes in a second."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import nn

from pivotune.pipeline.recipe.intervals import Clock
from pivotune.pipeline.recipe.options import OptimizerOptions
from pivotune.pipeline.recipe.typed import options_of
from pivotune.pipeline.train.weights import WeightSettings

ADAM = options_of(OptimizerOptions, kind="adamw", weight_decay=0.1)
SETTINGS = WeightSettings(ADAM, 1e-2, ema=0.5)
TUNED = ("layers.0.one.weight", "layers.1.one.weight", "layers.1.one.bias")


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(8, 8)

    def forward(self, values):
        return torch.tanh(self.one(values))


class Encoder(nn.Module):
    """Like a text encoder: a token table, which is never fine-tuned, and two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(5, 8)
        self.layers = nn.ModuleList([Layer(), Layer()])

    def get_input_embeddings(self):
        return self.table

    def forward(self, ids):
        values = self.table(ids)
        for layer in self.layers:
            values = layer(values)
        return values


def made(dtype=torch.float32):
    """A pipeline with such an encoder, and its weights that are fine-tuned."""
    torch.manual_seed(0)
    part = Encoder().requires_grad_(False).to(dtype)
    weights = {name: weight for name, weight in part.named_parameters() if name in TUNED}
    return SimpleNamespace(encoder=part), weights


def step(pipe, trainer, number, parts=(slice(None),), loss=lambda values: values.square().sum()):
    """One step over these parts of a batch of two, a backward pass each; the norm of its gradient."""
    for part in parts:
        loss(pipe.encoder(torch.arange(4).reshape(2, 2)[part])).backward()
    norm = trainer.gradient_norm(1.0)
    trainer.step(norm, Clock(number, 10, 1.0, 0.0))
    return norm
