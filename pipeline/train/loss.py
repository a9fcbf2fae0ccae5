"""How a denoiser's answer is held against what it was asked for: by element, by example, and over a batch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..data.batch import Whole


@dataclass(frozen=True, eq=False)
class Question:
    """What a batch asks of the denoiser.

    `noisy` and `target` are (batch, channels, height, width); `timesteps` (batch,) as the denoiser takes them;
    `weight` (batch,) is what each example's loss counts at its time step, `threshold` (batch,) where Huber's loss
    turns straight, or None where the loss has no threshold.
    """

    noisy: Tensor
    timesteps: Tensor
    target: Tensor
    weight: Tensor | None = None
    threshold: Tensor | None = None

    def to(self, device: torch.device, dtype: torch.dtype) -> Question:
        """On a device, with what the denoiser sees in its data type; the target stays float32."""
        rest = (None if one is None else one.to(device) for one in (self.weight, self.threshold))
        return Question(self.noisy.to(device, dtype), self.timesteps.to(device), self.target.to(device), *rest)

    def cut(self, part: slice) -> Question:
        """What is asked of some of the examples."""
        rest = (None if one is None else one[part] for one in (self.weight, self.threshold))
        return Question(self.noisy[part], self.timesteps[part], self.target[part], *rest)


@dataclass(frozen=True)
class LossOptions:
    """What of the objective is about the loss; `schemas/tables/objective.json` says what each means."""

    kind: str = "l2"
    unmasked_weight: float = 0.1
    normalize_mask: bool = False

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> LossOptions:
        return cls(options["loss"], options["unmasked_weight"], options["normalize_mask"])


def example_losses(prediction: Tensor, question: Question, options: LossOptions, mask: Tensor | None = None) -> Tensor:
    """The loss of each example, (batch,) float32: the mean over its elements, weighted by its time step.

    `mask` (batch, 1, height, width), 0 to 1, weakens what lies outside as OneTrainer does: the mask is raised to
    `unmasked_weight` where it is lower, and with `normalize_mask` a picture's loss is divided by its mean.
    """
    losses = _element_losses(prediction.float(), question.target.float(), options.kind, question.threshold)
    if mask is not None:
        raised = mask.to(losses).clamp(min=options.unmasked_weight, max=1.0)
        losses = losses * raised
        if options.normalize_mask:
            losses = losses / raised.mean(dim=(1, 2, 3), keepdim=True).clamp(min=1e-6)
    means = losses.mean(dim=tuple(range(1, losses.ndim)))
    return means if question.weight is None else means * question.weight


def _element_losses(prediction: Tensor, target: Tensor, kind: str, threshold: Tensor | None) -> Tensor:
    """Squared, absolute, or the smooth (pseudo-)Huber loss of kohya's scripts: 2c(√(d² + c²) - c), once over c."""
    difference = prediction - target
    if kind == "l2":
        return difference.square()
    if kind == "l1":
        return difference.abs()
    if threshold is None:
        raise ValueError(f"{kind} needs a threshold for each example")
    c = threshold.reshape(-1, *([1] * (difference.ndim - 1)))
    smooth = 2 * ((difference.square() + c.square()).sqrt() - c)
    return c * smooth if kind == "huber" else smooth


def mean_loss(
    losses: Tensor, weight: Tensor | None = None, prior: Tensor | None = None, prior_weight: float = 1.0
) -> Tensor:
    """The loss of a batch of (batch,) example losses, each of which counts `weight` times.

    Where `prior` (batch,) marks examples of the class, the loss is DreamBooth's (Ruiz et al. 2023): the mean over the
    other examples plus `prior_weight` times the mean over these.
    """
    weighted = losses if weight is None else losses * weight.to(losses)
    if prior is None or not bool(prior.any()):
        return weighted.mean()
    held = prior.to(weighted.device)
    kept = prior_weight * weighted[held].mean()
    return kept if bool(held.all()) else weighted[~held].mean() + kept


def part_loss(losses: Tensor, whole: Whole, prior_weight: float = 1.0) -> Tensor:
    """What some examples of a batch add to its `mean_loss`: the parts of all processes add up to it."""
    kept = prior_weight / whole.prior.sum().clamp(min=1)
    rest = 1 / (~whole.prior).sum().clamp(min=1)
    shares = whole.weight * torch.where(whole.prior, kept, rest)
    return (losses * shares[whole.place].to(losses)).sum()
