"""Options of stages as typed values: one frozen class per schema, with the schema's keys as fields.

Descriptions and defaults are in the schemas; `typed.py` creates the values once. A test pins fields = keys.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from .intervals import Every
from .optimizers import OPTIMIZERS, Optimizer


@dataclass(frozen=True)
class Band:
    """A range of norms."""

    low: float
    high: float


NormRule = str | float | Band  # see `embeddings.norms.apply_rule`
LearningRate = float | Mapping[str, float]  # one, or one for each encoder key


@dataclass(frozen=True)
class OptimizerOptions:
    """`settings` are the keys that only this kind of optimizer has; its constructor takes them as arguments."""

    SCHEMA: ClassVar[str] = "tables/optimizer.json"
    kind: str
    settings: Mapping[str, Any] = field(hash=False)
    weight_decay: float

    @property
    def facts(self) -> Optimizer:
        """The row of the table of optimizers."""
        return OPTIMIZERS[self.kind]


@dataclass(frozen=True)
class ScheduleOptions:
    SCHEMA: ClassVar[str] = "tables/schedule.json"
    kind: str
    cycles: int
    power: float
    pieces: tuple[tuple[float, float], ...]
    end: float


@dataclass(frozen=True)
class LoraOptions:
    """`alpha`, `schedule`, `warmup_steps` and weight decay are filled in, here and in FinetuneOptions.

    `base` is an absolute path; with it rank, alpha and targets are None unless the recipe states them.
    """

    SCHEMA: ClassVar[str] = "tables/lora.json"
    parts: tuple[str, ...]
    base: str | None
    train: bool
    strength: float
    rank: int | None
    alpha: float | None
    dropout: float
    dora: bool
    targets: str | tuple[str, ...] | None
    containing: tuple[str, ...]
    excluding: tuple[str, ...]
    learning_rate: float
    weight_decay: float
    optimizer: OptimizerOptions
    schedule: ScheduleOptions
    warmup_steps: float


@dataclass(frozen=True)
class FinetuneOptions:
    SCHEMA: ClassVar[str] = "tables/finetune.json"
    parts: tuple[str, ...]
    layers: str | tuple[str, ...]
    learning_rate: float
    weight_decay: float
    optimizer: OptimizerOptions
    schedule: ScheduleOptions
    warmup_steps: float


WeightOptions = LoraOptions | FinetuneOptions


@dataclass(frozen=True)
class HuberOptions:
    threshold: float
    schedule: str
    scale: float


@dataclass(frozen=True)
class ObjectiveOptions:
    SCHEMA: ClassVar[str] = "tables/objective.json"
    prediction: str | None
    zero_terminal_snr: bool | None
    loss: str
    huber: HuberOptions
    weighting: str
    gamma: float
    guidance: float
    unmasked_weight: float
    normalize_mask: bool
    masked_prior_weight: float


@dataclass(frozen=True)
class NoiseOptions:
    SCHEMA: ClassVar[str] = "tables/noise.json"
    offset: float
    offset_per_channel: bool
    offset_adaptive: float
    perturbation: float
    input_perturbation: float


@dataclass(frozen=True)
class TimestepOptions:
    """None means the model's own."""

    SCHEMA: ClassVar[str] = "tables/timesteps.json"
    low: int
    high: int | None
    sampling: str | None
    mean: float
    deviation: float
    mode_scale: float
    parabola_weight: float
    shift: float | str | None


@dataclass(frozen=True)
class LocalityOptions:
    SCHEMA: ClassVar[str] = "tables/locality.json"
    weight: float
    alpha: float
    every: int
    prompts: tuple[str, ...] | None


@dataclass(frozen=True)
class WatchOptions:
    SCHEMA: ClassVar[str] = "tables/watch.json"
    sample_every: Every | None
    prompts: tuple[str, ...] | None
    count: int
    trackers: tuple[str, ...]


@dataclass(frozen=True)
class GuardOptions:
    SCHEMA: ClassVar[str] = "tables/guard.json"
    frozen_vectors: str
    frozen_vectors_after: int
    norm: str
    norm_band: Band
    stalled_lr: str
    stalled_lr_after: int
    not_finite: str


@dataclass(frozen=True)
class SaveOptions:
    SCHEMA: ClassVar[str] = "tables/save.json"
    every: Every
    keep: int
    model: bool


@dataclass(frozen=True)
class StopOptions:
    """`validation` is "no better for N"."""

    validation: str

    @property
    def patience(self) -> int:
        """After how many validations without a new best one the stage ends."""
        return int(self.validation.rpartition(" ")[2])


@dataclass(frozen=True)
class GenerateOptions:
    SCHEMA: ClassVar[str] = "tables/generate.json"
    prompts: tuple[str, ...]
    count: int
    steps: int
    guidance: float


class StageOptions:
    """Options of a stage. The class variables are the facts about its kind that checks, plan and runner use."""

    SCHEMA: ClassVar[str]
    AFTER: ClassVar[tuple[str, ...]] = ()  # kinds that must come before it in a recipe with embeddings
    ONCE: ClassVar[bool] = False  # a recipe may have it once
    REPEATED: ClassVar[bool] = False  # on resume it runs again: it adds embeddings or adapters to the model
    MAIN_PROCESS: ClassVar[bool] = False  # of several processes only the main one runs it: it writes files
    INPUTS: ClassVar[str] = "vectors"  # for `pivotune plan`
    OUTPUTS: ClassVar[str] = "vectors"


@dataclass(frozen=True)
class TokenizeOptions(StageOptions):
    SCHEMA: ClassVar[str] = "stages/tokenize.json"
    ONCE: ClassVar[bool] = True
    REPEATED: ClassVar[bool] = True
    INPUTS: ClassVar[str] = "initial texts"
    OUTPUTS: ClassVar[str] = "initial vectors of every embedding"
    pad_with: str


@dataclass(frozen=True)
class InjectOptions(StageOptions):
    SCHEMA: ClassVar[str] = "stages/inject.json"
    AFTER: ClassVar[tuple[str, ...]] = ("tokenize",)
    ONCE: ClassVar[bool] = True
    REPEATED: ClassVar[bool] = True
    INPUTS: ClassVar[str] = "initial vectors"
    OUTPUTS: ClassVar[str] = "tokenizers and text encoders with the embeddings"
    encoders: tuple[str, ...] | None


@dataclass(frozen=True)
class TrainOptions(StageOptions):
    """`lora` and `finetune` are empty where the stage trains none; other tables that are off are None."""

    SCHEMA: ClassVar[str] = "stages/train.json"
    AFTER: ClassVar[tuple[str, ...]] = ("tokenize", "inject")
    REPEATED: ClassVar[bool] = True
    INPUTS: ClassVar[str] = "images, captions"
    steps: int
    batch_size: int
    embeddings: bool
    learning_rate: LearningRate
    lora: tuple[LoraOptions, ...]
    finetune: tuple[FinetuneOptions, ...]
    optimizer: OptimizerOptions
    schedule: ScheduleOptions
    warmup_steps: float
    clip_norm: float
    ema: float | None
    gradient_accumulation: int
    gradient_checkpointing: bool
    preserve_norm: NormRule | None
    resolution: int | None
    flip: bool
    caption_dropout: float
    log_every: int
    objective: ObjectiveOptions
    noise: NoiseOptions
    timesteps: TimestepOptions
    prior_weight: float
    locality: LocalityOptions | None
    watch: WatchOptions | None
    guard: GuardOptions
    save: SaveOptions | None
    stop_when: StopOptions | None
    compile: bool
    shard_optimizer_from: int

    @property
    def trained_loras(self) -> tuple[LoraOptions, ...]:
        return tuple(table for table in self.lora if table.train)

    @property
    def fixed_loras(self) -> tuple[LoraOptions, ...]:
        """The LoRAs that are added to the model and not trained."""
        return tuple(table for table in self.lora if not table.train)

    @property
    def weight_tables(self) -> list[tuple[str, int, WeightOptions]]:
        """Every table of `lora` and `finetune` that is trained: its key, its index under that key, its options."""
        tables: tuple[tuple[str, tuple[WeightOptions, ...]], ...] = (("lora", self.lora), ("finetune", self.finetune))
        every = [(key, index, table) for key, several in tables for index, table in enumerate(several)]
        return [one for one in every if not isinstance(one[2], LoraOptions) or one[2].train]


@dataclass(frozen=True)
class RescaleOptions(StageOptions):
    SCHEMA: ClassVar[str] = "stages/rescale.json"
    AFTER: ClassVar[tuple[str, ...]] = ("tokenize", "inject")
    INPUTS: ClassVar[str] = "trained vectors"
    to: NormRule


@dataclass(frozen=True)
class ExportOptions(StageOptions):
    SCHEMA: ClassVar[str] = "stages/export.json"
    AFTER: ClassVar[tuple[str, ...]] = ("tokenize",)
    ONCE: ClassVar[bool] = True
    MAIN_PROCESS: ClassVar[bool] = True
    targets: tuple[str, ...]
    from_: str  # the key is `from`, a keyword of Python
    bundle: bool
    files: str
    pack_size: int
    dtype: str
    model: tuple[str, ...]
    model_dtype: str


STAGE_OPTIONS: dict[str, type[StageOptions]] = {Path(kind.SCHEMA).stem: kind for kind in StageOptions.__subclasses__()}
