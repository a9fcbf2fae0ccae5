"""Predictions of the model without the LoRA as targets: what it draws around masks, or for class images, is kept.

As OneTrainer's masked prior preservation and prior prediction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..data.dataset import Batch
from ..errors import StageError
from ..models.denoisers import Denoiser
from ..models.load import Model
from ..models.text import Text
from ..recipe.options import TrainOptions
from .locality import base_model
from .loss import NoisyBatch
from .weights import WeightTrainer

if TYPE_CHECKING:
    from .setup import Training


@dataclass(frozen=True, eq=False)
class PriorTarget:
    """`masked`: images with masks need the prediction too. `encoders`: a LoRA is on text encoders."""

    model: Model
    denoiser: Denoiser
    masked: bool
    encoders: bool

    def add(self, noisy_batch: NoisyBatch, batch: Batch, text: Text) -> NoisyBatch:
        """The batch with the base model's prediction: as `base`, and as the target of images that ask for it."""
        of_model = batch.prior_of_model
        if not bool(of_model.any()) and not (self.masked and batch.mask is not None):
            return noisy_batch
        base = self._prediction(noisy_batch, batch, text).float()
        chosen = of_model.to(base.device).reshape(-1, *[1] * (base.ndim - 1))
        return replace(noisy_batch, base=base, target=torch.where(chosen, base, noisy_batch.target))

    def _prediction(self, noisy_batch: NoisyBatch, batch: Batch, text: Text) -> Tensor:
        models = [self.model.denoiser, *(encoder.module for encoder in self.model.encoders)]
        with base_model(models, {}):
            own = self.denoiser.encode(self.model.pipe, list(batch.captions)) if self.encoders else text
            return self.denoiser.predict(
                self.model.pipe, noisy_batch.noisy, noisy_batch.timesteps, own.map(Tensor.detach), batch.sizes
            )


def prior_target_of(training: Training, options: TrainOptions) -> PriorTarget:
    """What a stage needs for such targets, if it or a concept asks for them.

    Raises StageError where the model without the LoRA would predict the same, or is not there any more.
    """
    masked = options.objective.masked_prior_weight > 0
    what = "objective.masked_prior_weight" if masked else "prior_target = 'model'"
    weights: Sequence[WeightTrainer] = training.trainables.weights
    if not weights:
        raise StageError(f"{what} has no effect: this stage trains no LoRA, so the prediction is the same; remove it")
    if any(trainer.kind == "finetune" for trainer in weights):
        raise StageError(f"{what} is for a LoRA, and this stage fine-tunes the weights that would predict; remove it")
    return PriorTarget(training.model, training.denoiser, masked, any(trainer.trains_text for trainer in weights))
