"""How many values each train stage moves and keeps, counted on a model without weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..models.load import Model
from ..recipe.model import Recipe
from ..train.schedule_free import averages_itself
from ..train.setup import Common, weight_trainers
from ..train.weights import WeightTrainer

# Bytes of an optimizer's state for each float32 value it moves.
STATE = {"adamw": 8, "adamw-schedule-free": 8, "adamw8bit": 2.1, "adafactor": 0.2, "lion": 4, "came": 4.2,
         "prodigy": 16, "prodigy-schedule-free": 4.4}  # fmt: skip
VALUE = 4  # bytes of a float32


@dataclass(frozen=True)
class Moved:
    """What one optimizer moves: so many values, with so many bytes of state and averages beside them.

    `copied` says that the model's own weights are half as long, so that float32 copies of them are moved.
    """

    name: str
    values: int
    state: int
    copied: bool = False


@dataclass(frozen=True)
class StageNeeds:
    """A train stage, by its place among the stages: what it moves, and weights that earlier stages have moved."""

    stage: int
    moved: tuple[Moved, ...]
    still: int

    @property
    def bytes(self) -> int:
        """Trained values in float32, with all that is kept beside them."""
        return sum(VALUE * one.values + one.state for one in self.moved)


@dataclass(frozen=True)
class Needs:
    """What a run trains. `words` are the float32 values of all words' vectors, `lora` those of the LoRA at the end;
    `tuned`: whether weights of the model are. `frozen` are the bytes of the model as it is loaded, `whole` its values,
    `channels` those of an encoded picture, `activations` the bytes that the denoiser keeps of one picture of `edge`
    pixels for the backward pass (0: nobody has counted).
    """

    words: int
    lora: int
    tuned: bool
    frozen: int
    whole: int
    channels: int
    activations: int
    edge: int
    stages: tuple[StageNeeds, ...]


def count_needs(recipe: Recipe, model: Model, vectors: Mapping[str, Mapping[str, int]]) -> Needs:
    """Count on `model`, which gets the recipe's LoRAs; `vectors` has how many each word has, by encoder key.

    Raises StageError for what no stage could do: a LoRA or fine-tune that fits no layer, a part the model does not
    have, an optimizer whose library is not here.
    """
    width = {encoder.key: encoder.table.shape[1] for encoder in model.encoders}
    words = sum(count * width[key] for one in vectors.values() for key, count in one.items() if key in width)
    whole = sum(weight.numel() for part in model.pipe.components.values() for weight in part.parameters())
    stages: list[StageNeeds] = []
    before: dict[str, int] = {}
    for index, stage in enumerate(recipe.stages):
        if stage.kind != "train":
            continue
        moved = _moved(model, stage.options, words, recipe)
        now = {one.name: one.values for one in moved if one.name != "words"}
        stages.append(StageNeeds(index, moved, sum(count for name, count in before.items() if name not in now)))
        before |= now
    lora = sum(count for name, count in before.items() if name.startswith("lora."))
    tuned = any(name.startswith("finetune.") for name in before)
    family = model.family
    usual = getattr(model.denoiser.config, family.denoiser_width, None) == family.cross_attention
    activations = round(family.step_activations_mib * 2**20 * model.dtype.itemsize / 2) if usual else 0
    return Needs(
        words, lora, tuned, whole * model.dtype.itemsize, whole, int(model.pipe.vae.config.latent_channels),
        activations, family.resolution, tuple(stages),
    )  # fmt: skip


def _moved(model: Model, options: Mapping[str, Any], words: int, recipe: Recipe) -> tuple[Moved, ...]:
    ema = options["ema"]
    common = Common(options["steps"], options["clip_norm"], ema, recipe.seed)
    tables = {
        f"{kind}.{part}": table
        for kind in ("lora", "finetune")
        for table in options[kind] or ()
        for part in table["parts"]
    }
    found = []
    if options["embeddings"] and any(word.train for word in recipe.words):
        found.append(Moved("words", words, _state(words, options["optimizer"]["kind"], ema)))
    for thing in weight_trainers(model, options["lora"] or (), options["finetune"] or (), common):
        assert isinstance(thing, WeightTrainer)
        values = sum(master.numel() for master in thing.masters.values())
        copied = any(thing.masters[name] is not weight for name, weight in thing.parameters.items())
        kind = tables[thing.name]["optimizer"]["kind"]
        found.append(Moved(thing.name, values, _state(values, kind, ema), copied))
    return tuple(found)


def _state(values: int, kind: str, ema: float | None) -> int:
    return round(values * (STATE[kind] + (0 if ema is None or averages_itself(kind) else VALUE)))
