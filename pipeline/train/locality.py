"""Locality regularization: keeps predictions near the embeddings close to the base model's."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from ..data.captions import read_captions
from ..data.dataset import FullBatch
from ..data.tags import longest_form
from ..distributed import Processes
from ..embeddings.placeholders import Replacer
from ..errors import StageError
from ..models.denoisers import Denoiser
from ..models.load import Model
from ..models.text import Text, between
from ..recipe.model import Recipe
from ..recipe.options import LocalityOptions
from ..rng import generator
from .loss import NoisyBatch
from .weights import WeightTrainer

if TYPE_CHECKING:
    from .setup import Training


Copies = Mapping[nn.Parameter, Tensor]


def weight_copies(parameters: Iterable[nn.Parameter]) -> dict[nn.Parameter, Tensor]:
    """The values that weights have now, to be restored by `base_model`; they take as much memory as the weights."""
    return {parameter: parameter.detach().clone() for parameter in parameters}


@contextmanager
def base_model(models: Iterable[nn.Module], originals: Copies) -> Iterator[None]:
    """Within it LoRAs are disabled and fine-tuned weights have their `originals`; the model is not copied."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [module for model in models for module in model.modules() if isinstance(module, BaseTunerLayer)]
    trainable = [(parameter, parameter.requires_grad) for layer in layers for parameter in layer.parameters()]
    now = {parameter: parameter.data for parameter in originals}
    try:
        for layer in layers:
            layer.enable_adapters(False)
        for parameter, values in originals.items():
            parameter.data = values
        with torch.no_grad():
            yield
    finally:
        for parameter, values in now.items():
            parameter.data = values
        for layer in layers:
            layer.enable_adapters(True)
        for parameter, wanted in trainable:  # enabling LoRAs makes all of them trainable
            parameter.requires_grad_(wanted)


@dataclass(eq=False)
class Locality:
    """The regularizer of a stage. `originals` has the base model's values of weights that are fine-tuned.

    `encoders` says that text encoders are trained too: then the states of the prompts carry a gradient. `difference` is
    the last one, before its weight, over this `share` of the batch.
    """

    model: Model
    denoiser: Denoiser
    prompts: tuple[str, ...]
    weight: float
    alpha: float
    every: int
    seed: int
    originals: Copies = field(default_factory=dict)
    encoders: bool = False
    difference: float | None = None
    share: float = 0.0

    def loss(
        self, text: Text, noisy_batch: NoisyBatch, sizes: Tensor | None, number: int, full: FullBatch | None = None
    ) -> Tensor | None:
        """The weighted difference for batch `number`, or None in batches without it (`every`).

        `text` has the states of the batch's captions, which get no gradient from it: they are the pivot. For a part of
        a batch it is the part's share in the difference of the full batch.
        """
        if number % self.every:
            return None
        count, part = (len(noisy_batch.noisy), slice(None)) if full is None else (full.size, full.part)
        others = self._draw_prompts(count, number)[part]
        pipe, pivot = self.model.pipe, text.map(Tensor.detach)
        with base_model(self._models(), self.originals):
            near = between(pivot, self.denoiser.encode(pipe, others), self.alpha)
            target = self.denoiser.predict(pipe, noisy_batch.noisy, noisy_batch.timesteps, near, sizes)
        with torch.set_grad_enabled(self.encoders):
            near = between(pivot, self.denoiser.encode(pipe, others), self.alpha)
        prediction = self.denoiser.predict(pipe, noisy_batch.noisy, noisy_batch.timesteps, near, sizes)
        difference = (prediction.float() - target.float()).square().mean()
        self.difference, self.share = float(difference.detach()), len(others) / count
        return self.weight * self.share * difference

    def mean_difference(self, processes: Processes) -> float | None:
        """The last difference, averaged over the processes."""
        if processes.count == 1:
            return self.difference
        total, share = processes.sum_numbers([(self.difference or 0.0) * self.share, self.share])
        return total / share if share else None

    def _draw_prompts(self, count: int, number: int) -> list[str]:
        drawn = torch.randint(len(self.prompts), (count,), generator=generator(self.seed, "locality", number))
        return [self.prompts[index] for index in drawn.tolist()]

    def _models(self) -> list[nn.Module]:
        return [self.model.denoiser, *(encoder.module for encoder in self.model.encoders)]


MIB = 2**20


def keep_originals(originals: dict[Parameter, Tensor], trainers: Sequence[WeightTrainer]) -> list[str]:
    """Copy the weights that are fine-tuned, as the model was loaded, for a recipe in which a stage has locality.

    Called before a stage trains anything, so that `originals` has them for later stages too. Returns a note of how
    much memory the copies take.
    """
    tuned = [one for trainer in trainers if trainer.kind == "finetune" for one in trainer.parameters.values()]
    new = weight_copies(one for one in tuned if one not in originals)
    originals.update(new)
    if not new:
        return []
    size = sum(values.numel() * values.element_size() for values in new.values()) / MIB
    return [f"locality keeps a copy of the fine-tuned weights: {size:,.1f} MiB"]


def locality_of(
    recipe: Recipe, originals: Mapping[Parameter, Tensor], training: Training, options: LocalityOptions
) -> Locality:
    """The regularizer of a stage. The base model is the one without LoRAs and with the weights in `originals`.

    Raises StageError where only embeddings are trained: then nothing else of the model changes.
    """
    tuned = training.trainables.weights
    if not tuned:
        raise StageError("locality has no effect: this stage trains no LoRA and no weights of the model; remove it")
    mine = [one for trainable in tuned for one in trainable.parameters.values()]
    own_originals = {parameter: originals[parameter] for parameter in mine if parameter in originals}
    prompts = tuple(options.prompts or _plain_captions(recipe))
    return Locality(
        training.model, training.denoiser, prompts, options.weight, options.alpha, options.every, training.seed,
        originals=own_originals, encoders=any(trainable.trains_text for trainable in tuned),
    )  # fmt: skip


def _plain_captions(recipe: Recipe) -> list[str]:
    """Every caption once, with the initial text instead of each placeholder."""
    texts = {embedding.placeholder: embedding.initial_text for embedding in recipe.embeddings}
    replacer = Replacer(list(texts))
    captions = [
        longest_form(text, concept)
        for concept in recipe.concepts
        for _, several in read_captions(concept)
        for text in several
    ]
    return list(dict.fromkeys(replacer.replace(caption, texts) for caption in captions))
