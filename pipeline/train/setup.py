"""What a train stage needs, built before its first step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING

from torch import nn

from ..data.dataset import Dataset
from ..distributed import SINGLE_PROCESS, Processes
from ..embeddings.injection import Injection
from ..errors import StageError
from ..models.denoisers import Denoiser
from ..models.frozen import FrozenEncoder
from ..models.load import DENOISER, Model, part_module, part_modules, pipe_name
from ..models.text import CaptionCache
from ..recipe.intervals import Clock
from ..recipe.options import LoraOptions, TrainOptions, WeightOptions
from .embeddings import EmbeddingTrainer
from .fsdp import FsdpPart
from .guard import Guard
from .lora import LoraWeights, add_lora, freeze_lora
from .loss import LossScale
from .objective import Objective
from .optimizers import schedule_factor
from .trainable import Trainable
from .weights import WeightSettings, WeightTrainer, weights_to_finetune

if TYPE_CHECKING:  # few runs need them
    from .locality import Locality
    from .prior import PriorTarget
    from .validation import Validation

Bases = Mapping[str, Mapping[str, Mapping[str, LoraWeights]]]  # by path, part and layer
NO_BASES: Bases = MappingProxyType({})


def weight_trainers(
    model: Model, options: TrainOptions, seed: int, processes: Processes = SINGLE_PROCESS, bases: Bases = NO_BASES
) -> list[WeightTrainer]:
    """A trainer for each part of each LoRA and fine-tune; LoRAs of earlier stages are frozen, fixed ones left out.

    `bases` has the weights of the LoRAs' base files by path, part and layer.
    With `processes.sharding` each fine-tuned part is sharded. Raises StageError when a part is in two tables, or the
    model has no such part.
    """
    for module in part_modules(model).values():
        freeze_lora(module)
    taken: set[str] = set()
    trainers: list[WeightTrainer] = []
    tables: tuple[WeightOptions, ...] = (*options.finetune, *options.trained_loras)
    for table in tables:
        for part in table.parts:
            if part in taken:
                raise StageError(f"{part} is in two lora or finetune tables of this stage; remove it from one")
            taken.add(part)
            module, fsdp = part_module(model, part), None
            if isinstance(table, LoraOptions):
                base = bases[table.base][part] if table.base is not None else None
                name, parameters = f"lora.{part}", add_lora(part, module, table, seed, base)
            else:
                name, parameters = f"finetune.{part}", weights_to_finetune(part, module, table.layers)
                if processes.sharding:
                    fsdp = FsdpPart(model.pipe, pipe_name(model, part), list(parameters), main=processes.main)
            settings = _settings(table, options)
            trainers.append(WeightTrainer(name, parameters, settings, text=part != DENOISER, fsdp=fsdp))
    return trainers


@dataclass(frozen=True, eq=False)
class Trainables:
    """Everything that a stage trains, in this order: the embeddings, fine-tuned parts, LoRAs."""

    embeddings: EmbeddingTrainer | None
    weights: tuple[WeightTrainer, ...] = ()

    def __iter__(self) -> Iterator[Trainable]:
        if self.embeddings is not None:
            yield self.embeddings
        yield from self.weights

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """The model's weights that are trained, as `<trainable>/<parameter>`; embeddings are rows of their own."""
        return {f"{one.name}/{name}": weight for one in self.weights for name, weight in one.parameters.items()}


def frozen_encoders(model: Model, trainables: Trainables) -> tuple[FrozenEncoder, ...]:
    """The text encoders in which a stage trains neither vectors nor weights.

    Those with output embeddings are left out: these replace an output of the step's own ids.
    """
    embeddings = trainables.embeddings
    return tuple(
        FrozenEncoder(encoder.module)
        for encoder in model.encoders
        if not (embeddings and (embeddings.rates[encoder.key].any() or embeddings.injection.rows[encoder.key].outputs))
        and not any(weight.requires_grad for weight in encoder.module.parameters())
    )


def _settings(table: WeightOptions, stage: TrainOptions) -> WeightSettings:
    factor = partial(schedule_factor, table.schedule, steps=stage.steps, warmup_steps=table.warmup_steps)
    return WeightSettings(table.optimizer, table.learning_rate, factor, stage.clip_norm, stage.ema)


@dataclass(frozen=True, eq=False)
class Training:
    """Everything that the steps of a train stage need.

    `texts` caches encoded captions, for stages in which nothing that is trained changes them; `frozen` are the encoders
    of other stages in which nothing is trained.
    """

    model: Model
    denoiser: Denoiser
    injection: Injection
    objective: Objective
    dataset: Dataset
    trainables: Trainables
    steps: int
    accumulation: int
    seed: int
    prior_weight: float = 1.0
    locality: Locality | None = None
    prior_target: PriorTarget | None = None
    scale: LossScale = field(default_factory=LossScale)
    guard: Guard | None = None
    processes: Processes = SINGLE_PROCESS
    texts: CaptionCache | None = None
    frozen: tuple[FrozenEncoder, ...] = ()
    validation: Validation | None = None

    @property
    def stopped(self) -> bool:
        """Whether validation ends the stage before its last step."""
        return self.validation is not None and self.validation.stops

    @property
    def embeddings(self) -> EmbeddingTrainer | None:
        """The trainer of the embeddings, where the stage trains them."""
        return self.trainables.embeddings

    @property
    def sharded(self) -> bool:
        """Whether a fine-tuned part is sharded over the processes."""
        return any(trainable.sharded for trainable in self.trainables.weights)

    @property
    def steps_per_epoch(self) -> float:
        return self.dataset.batches_per_epoch / self.accumulation

    def clock(self, step: int, seconds: float) -> Clock:
        """The progress of the stage after `step` steps that took so many seconds."""
        return Clock(step, self.steps, self.steps_per_epoch, seconds)
