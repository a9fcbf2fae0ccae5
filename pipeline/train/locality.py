"""The model as it was before it was tuned, for as long as one looks at it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from ..data.captions import read_captions
from ..data.dataset import Whole
from ..distributed import Processes
from ..embeddings.placeholders import Replacer
from ..errors import StageError
from ..models.denoisers import Denoiser
from ..models.load import Model
from ..models.text import Text, between
from ..recipe.model import Recipe
from ..recipe.options import LocalityOptions, TrainOptions
from ..rng import generator
from .loss import NoisyBatch
from .weights import WeightTrainer

if TYPE_CHECKING:
    from .setup import Training


Copies = Mapping[nn.Parameter, Tensor]


def weight_copies(parameters: Iterable[nn.Parameter]) -> dict[nn.Parameter, Tensor]:
    """The values that weights have now, to be put back by `untouched`: as much memory as the weights take."""
    return {parameter: parameter.detach().clone() for parameter in parameters}


@contextmanager
def base_model(models: Iterable[nn.Module], before: Copies) -> Iterator[None]:
    """Within it LoRAs are switched off and the weights in `before` have those values; no copy of the model is made."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [module for model in models for module in model.modules() if isinstance(module, BaseTunerLayer)]
    asked = [(parameter, parameter.requires_grad) for layer in layers for parameter in layer.parameters()]
    now = {parameter: parameter.data for parameter in before}
    try:
        for layer in layers:
            layer.enable_adapters(False)
        for parameter, values in before.items():
            parameter.data = values
        with torch.no_grad():
            yield
    finally:
        for parameter, values in now.items():
            parameter.data = values
        for layer in layers:
            layer.enable_adapters(True)
        for parameter, wanted in asked:  # switching LoRAs on makes all of them trainable
            parameter.requires_grad_(wanted)


@dataclass(eq=False)
class Locality:
    """What a stage needs for it. `before` has the values of weights that are fine-tuned; LoRAs are switched off.

    `encoders` says that text encoders are tuned too: then the other prompts' states carry a gradient. `measured` is
    the last difference, before its weight, over this `share` of the batch.
    """

    model: Model
    denoiser: Denoiser
    prompts: tuple[str, ...]
    weight: float
    alpha: float
    every: int
    seed: int
    before: Copies = field(default_factory=dict)
    encoders: bool = False
    measured: float | None = None
    share: float = 0.0

    def loss(
        self, text: Text, asked: NoisyBatch, sizes: Tensor | None, number: int, whole: Whole | None = None
    ) -> Tensor | None:
        """The weighted difference for batch `number`, or None where it is not its turn.

        `text` is what the encoders say of the batch's captions. The embeddings feel nothing of it: they are the pivot.
        Of a part of the batch it is the part's share in the whole's difference.
        """
        if number % self.every:
            return None
        count, place = (len(asked.noisy), slice(None)) if whole is None else (whole.size, whole.place)
        others = self._others(count, number)[place]
        pipe, pivot = self.model.pipe, text.map(Tensor.detach)
        with base_model(self._models(), self.before):
            near = between(pivot, self.denoiser.encode(pipe, others), self.alpha)
            target = self.denoiser.predict(pipe, asked.noisy, asked.timesteps, near, sizes)
        with torch.set_grad_enabled(self.encoders):
            near = between(pivot, self.denoiser.encode(pipe, others), self.alpha)
        answer = self.denoiser.predict(pipe, asked.noisy, asked.timesteps, near, sizes)
        difference = (answer.float() - target.float()).square().mean()
        self.measured, self.share = float(difference.detach()), len(others) / count
        return self.weight * self.share * difference

    def seen(self, processes: Processes) -> float | None:
        """The last difference, over what each of the processes measured."""
        if processes.count == 1:
            return self.measured
        total, share = processes.numbers([(self.measured or 0.0) * self.share, self.share])
        return total / share if share else None

    def _others(self, count: int, number: int) -> list[str]:
        drawn = torch.randint(len(self.prompts), (count,), generator=generator(self.seed, "locality", number))
        return [self.prompts[place] for place in drawn.tolist()]

    def _models(self) -> list[nn.Module]:
        return [self.model.denoiser, *(encoder.module for encoder in self.model.encoders)]


MIB = 2**20


def keep_originals(recipe: Recipe, originals: dict[Parameter, Tensor], trainers: Sequence[WeightTrainer]) -> list[str]:
    """Where a stage of the recipe has locality: copies of the weights that are fine-tuned, as the model was loaded.

    Called before a stage trains anything, so that `originals` has them for a later stage too. Returns a note of how
    much memory that takes.
    """
    if not any(options.locality for _, options in recipe.stages_with(TrainOptions)):
        return []
    tuned = [one for trainer in trainers if trainer.kind == "finetune" for one in trainer.parameters.values()]
    new = weight_copies(one for one in tuned if one not in originals)
    originals.update(new)
    if not new:
        return []
    size = sum(values.numel() * values.element_size() for values in new.values()) / MIB
    return [f"locality keeps {size:,.1f} MiB: the weights that are fine-tuned, as they were"]


def locality_of(
    recipe: Recipe, originals: Mapping[Parameter, Tensor], training: Training, options: LocalityOptions
) -> Locality:
    """The regulariser of a stage. The untouched model is the one with its LoRAs off and the weights that `remember`
    kept. Raises StageError where nothing but embeddings is trained, for then nothing else of the model changes.
    """
    tuned = training.trainables.weights
    if not tuned:
        raise StageError(
            "locality: this stage tunes neither a LoRA nor weights of the model, so prompts without embeddings stay as they "
            "are; leave it out"
        )
    mine = [one for trainable in tuned for one in trainable.parameters.values()]
    before = {parameter: originals[parameter] for parameter in mine if parameter in originals}
    prompts = tuple(options.prompts or _plain_captions(recipe))
    return Locality(
        training.model, training.denoiser, prompts, options.weight, options.alpha, options.every, training.seed,
        before=before, encoders=any(trainable.trains_text for trainable in tuned),
    )  # fmt: skip


def _plain_captions(recipe: Recipe) -> list[str]:
    """Every caption once, with the initial text in the place of each embedding."""
    texts = {embedding.placeholder: embedding.initial_text for embedding in recipe.embeddings}
    replacer = Replacer(list(texts))
    captions = [text for concept in recipe.concepts for _, several in read_captions(concept) for text in several]
    return list(dict.fromkeys(replacer.replace(caption, texts) for caption in captions))
