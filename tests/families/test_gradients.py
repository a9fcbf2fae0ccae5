"""Gradients of every family: the same with and without gradient checkpointing, for oblong images too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from projects import BUILD, family_name, runnable
from torch import Tensor

from pivotune.pipeline.embeddings.injection import EmbeddingRows, Injection
from pivotune.pipeline.models.denoisers import DENOISERS
from pivotune.pipeline.models.load import load_model
from pivotune.pipeline.recipe.model import ModelSpec
from pivotune.pipeline.train.compute import gradient_checkpointing
from pivotune.pipeline.vae import latent_channels

CPU = torch.device("cpu")
NAMES = [name for name in BUILD if name != "sd1"]


def model_of(folder: Path, name: str) -> Any:
    BUILD[name]().save_pretrained(folder)
    return load_model(ModelSpec(str(folder), family_name(name), "float32", None, None, None), CPU)


def gradients(model: Any, *, checkpointed: bool) -> dict[str, Tensor]:
    """The gradient of an embedding's vectors in every text encoder, for two oblong images."""
    draw = torch.Generator().manual_seed(0)
    rows = {encoder.key: EmbeddingRows({"<cat>": encoder.table[5:8].clone().float()}) for encoder in model.encoders}
    injection = Injection(model.pipe, model.encoders, rows)
    denoiser = DENOISERS[model.family.denoiser_kind]
    noisy = torch.randn(2, latent_channels(model.pipe.vae.config), 8, 4, generator=draw)
    try:
        with gradient_checkpointing(model, checkpointed):
            active = injection.activate(["a <cat>"], train=True)
            text = denoiser.encode(model.pipe, ["a <cat>", "a photo of <cat>"])
            prediction = denoiser.predict(model.pipe, noisy, torch.tensor([900.0, 300.0]), text)
            (prediction * torch.randn(prediction.shape, generator=draw)).sum().backward()
        return {key: one.leaf.grad for key, one in active.items()}
    finally:
        injection.eject()


@pytest.mark.parametrize("name", runnable(NAMES))
def test_checkpointing_changes_no_gradient(tmp_path: Path, name: str) -> None:
    model = model_of(tmp_path, name)
    without = gradients(model, checkpointed=False)
    checkpointed = gradients(model, checkpointed=True)
    for key, gradient in without.items():
        assert all(bool(row.any()) for row in gradient), key
        torch.testing.assert_close(checkpointed[key], gradient, rtol=1e-4, atol=1e-6)


def test_experts_of_a_mixture_pass_the_gradient_on(tmp_path: Path) -> None:
    """diffusers computes them without a gradient in evaluation mode."""
    model = model_of(tmp_path, "hidream")
    block = model.denoiser.double_stream_blocks[0].block
    weights = [expert.w1.weight.requires_grad_(True) for expert in block.ff_i.experts]
    gradients(model, checkpointed=False)
    assert any(weight.grad is not None and bool(weight.grad.any()) for weight in weights)
