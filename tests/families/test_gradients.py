"""The gradient that reaches the token tables is the derivative of the prediction, in every family.

A part of it that is lost on the way (in code that computes without gradients) leaves a run that trains, but badly.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from projects import BUILD, family_name
from torch import Tensor

from pivotune.pipeline.models.denoisers import denoiser_for
from pivotune.pipeline.models.load import Model, load_model
from pivotune.pipeline.recipe.model import ModelSpec
from pivotune.pipeline.vae import latent_channels

CPU = torch.device("cpu")
STEP = 1e-2  # of the usual size of a vector's values


def loaded(folder: Path, name: str) -> Model:
    BUILD[name]().save_pretrained(folder)
    spec = ModelSpec(str(folder), family_name(name), "float32", revision=None, variant=None, config=None)
    return load_model(spec, CPU)


def value(model: Model, weights: Tensor, noisy: Tensor) -> Tensor:
    """One number of a prediction: its products with fixed random weights."""
    denoiser = denoiser_for(model.family.denoiser_kind)
    text = denoiser.encode(model.pipe, ["a red ring"])
    prediction = denoiser.predict(model.pipe, noisy, torch.tensor([500]), text)
    return (prediction.double() * weights).sum()


@pytest.mark.parametrize("name", BUILD)
def test_the_gradient_of_token_tables_is_the_derivative(tmp_path: Path, name: str) -> None:
    model = loaded(tmp_path, name)
    draw = torch.Generator().manual_seed(0)
    noisy = torch.randn(1, latent_channels(model.pipe.vae.config), 8, 8, generator=draw)
    weights = torch.randn(noisy.shape, generator=draw, dtype=torch.float64)
    for encoder in model.encoders:
        table = encoder.module.get_input_embeddings().weight
        direction = torch.randn(table.shape, generator=draw) * table.std()
        table.requires_grad_(True)
        [gradient] = torch.autograd.grad(value(model, weights, noisy), table)
        table.requires_grad_(False)
        ends = []
        for side in (1, -1):
            table += side * STEP * direction
            ends.append(value(model, weights, noisy))
            table -= side * STEP * direction
        derivative = (ends[0] - ends[1]) / (2 * STEP)
        torch.testing.assert_close((gradient * direction).sum().double(), derivative, rtol=0.02, atol=1e-4)
