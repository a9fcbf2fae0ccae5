"""What a train stage trains, put together before its first step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn

from ..errors import StageError
from ..models.load import Model
from ..processes import ALONE, Processes
from .finetune import weights_to_tune
from .lora import add_lora, freeze_lora
from .parts import DENOISER, part_module, part_modules, pipe_name
from .schedule import rate_factor
from .trained import Trained
from .twin import Twin
from .weights import WeightSettings, WeightTrainer

Tables = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Common:
    """What a stage says of everything that it trains."""

    steps: int
    clip_norm: float
    ema: float | None
    seed: int


def weight_trainers(
    model: Model, lora: Tables, finetune: Tables, common: Common, processes: Processes = ALONE
) -> list[Trained]:
    """A trainer for each part of each LoRA and fine-tune; LoRAs of earlier stages are held still.

    Where the `processes` are sharding, each fine-tuned part is spread over them. Raises StageError when a part stands
    in two tables, or the model has no such part.
    """
    for module in part_modules(model).values():
        freeze_lora(module)
    taken: set[str] = set()
    trainers: list[Trained] = []
    for kind, tables in (("finetune", finetune), ("lora", lora)):
        for table in tables:
            for part in table["parts"]:
                if part in taken:
                    raise StageError(f"{part} stands in two of this stage's lora and finetune tables; one can have it")
                taken.add(part)
                parameters = _parameters(kind, part, part_module(model, part), table, common.seed)
                settings = _settings(table, common)
                twin = None
                if processes.sharding and kind == "finetune":
                    twin = Twin(model.pipe, pipe_name(model, part), list(parameters), main=processes.main)
                name, text = f"{kind}.{part}", part != DENOISER
                trainers.append(WeightTrainer(name, parameters, settings, text=text, twin=twin))
    return trainers


def weights_of(things: Sequence[Trained]) -> dict[str, nn.Parameter]:
    """The model's weights that these train, as `<thing>/<parameter>`; words have none, their rows are their own."""
    trainers = [thing for thing in things if isinstance(thing, WeightTrainer)]
    return {f"{thing.name}/{name}": weight for thing in trainers for name, weight in thing.parameters.items()}


def _parameters(
    kind: str, part: str, module: nn.Module, table: Mapping[str, Any], seed: int
) -> dict[str, nn.Parameter]:
    if kind == "lora":
        return add_lora(part, module, table, seed)
    return weights_to_tune(part, module, table["layers"])


def _settings(table: Mapping[str, Any], common: Common) -> WeightSettings:
    factor = partial(rate_factor, table["schedule"], steps=common.steps, warmup_steps=table["warmup_steps"])
    return WeightSettings(table["optimizer"], table["learning_rate"], factor, common.clip_norm, common.ema)


def native_resolution(model: Model) -> int:
    """The side of the pictures that the model was made for, in pixels."""
    return int(model.denoiser.config.sample_size * model.pipe.vae_scale_factor)
