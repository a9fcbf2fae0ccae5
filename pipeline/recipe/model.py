"""A loaded recipe as frozen values. The defaults are in the JSON Schemas."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from .intervals import Every
from .options import ExportOptions, GenerateOptions, LearningRate, LoraOptions, NormRule, StageOptions, TrainOptions

T = TypeVar("T")
DEFAULT_INTERVAL = Every(5.0, "minutes")
CAPTION_SOURCES = ("beside", "file-name")  # other texts in `captions` are paths
PARTS = ("vae", "text_encoder", "text_encoder_2", "text_encoder_3")  # that a recipe may take from elsewhere
MOST_CHUNKS = 4  # of a prompt; the schema has it too
MASK_SOURCES = ("beside", "alpha", "none")  # other texts in `masks` are folders


@dataclass(frozen=True)
class ModelSpec:
    """Which model to load: `micro`, a hub id, a diffusers folder or a single-file checkpoint.

    `image_encoder` and `decoder` are further models of families that need them (Stable Cascade). PARTS replace those of
    the model, or are what a single file lacks: each a folder, a hub id or a file. `weights` are number formats of parts
    (`denoiser`, `vae`, encoder keys) that are not in `dtype`, `denoiser` a file (.safetensors or .gguf)
    or folder that has it in place of the model's own; `offload` the share of their blocks that
    rests in host memory.
    """

    base: str
    family: str | None
    dtype: str
    revision: str | None
    variant: str | None
    config: str | None
    clip_skip: int = 1
    prompt_chunks: int = 1
    image_encoder: str | None = None
    decoder: str | None = None
    vae: str | None = None
    text_encoder: str | None = None
    text_encoder_2: str | None = None
    text_encoder_3: str | None = None
    weights: Mapping[str, str] = field(default_factory=dict)
    denoiser: str | None = None
    offload: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Concept:
    """Images of one subject or style, the sources of their captions and masks, and how they are sampled.

    `captions` is `beside` (x.txt next to x.png), `file-name`, the path of a table or a .txt file, or a tuple of
    templates. `masks` is `beside`, `alpha`, `none`, or the path of a folder. The schema describes all fields.
    """

    images: Path
    captions: str | tuple[str, ...] = "beside"
    repeats: int = 1
    images_per_epoch: int | None = None
    recursive: bool = False
    folder_repeats: bool | None = None
    caption_lines: str = "auto"
    caption_extension: str | None = None
    loss_weight: float = 1.0
    prior: bool = False
    prior_target: str = "image"
    prefix: str = ""
    suffix: str = ""
    shuffle_tags: bool = False
    keep_tags: int = 0
    keep_separator: str | None = None
    tag_separator: str = ","
    tag_dropout: float = 0.0
    capitals: float = 0.0
    wildcards: bool = False
    strip_weights: bool = False
    masks: str = "beside"
    resolution: int | None = None
    flip: bool = False
    crop: str = "centre"
    rotate: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    generate: GenerateOptions | None = None


@dataclass(frozen=True)
class DataSpec:
    """How the images of all concepts are prepared. `cache_latents` is `user`, `run`, `memory`, `off` or a folder."""

    balance: str = "none"
    buckets: bool = False
    bucket_step: int | None = None
    cache_latents: str = "user"
    variants: int = 4


@dataclass(frozen=True)
class EmbeddingSpec:
    """One `[[embedding]]` table. `learning_rate` is one number, one per encoder key, or None (the train stage's);
    `preserve_norm` is a norm rule or None (the train stage's). `base` is a file to continue from, `base_name` its
    embedding, `resize` (cut, pad or None) what to do if it has a different number of vectors. `output`: its vectors
    replace the encoders' output."""

    placeholder: str
    initial_text: str
    tokens: int | None
    train: bool
    learning_rate: LearningRate | None
    stop_after: Every
    preserve_norm: NormRule | None = None
    base: Path | None = None
    base_name: str | None = None
    resize: str | None = None
    output: bool = False


@dataclass(frozen=True)
class Stage:
    """One stage: its kind and its options with defaults.

    `epochs` is the length of a train stage whose steps are still to be counted, see `checks.survey.with_steps`.
    """

    kind: str
    options: StageOptions
    epochs: float | None = None


@dataclass(frozen=True)
class Samples:
    """Sample images: `count` per prompt, the first with `seed` or its own of `seeds`, the next with the seeds after it.

    `size` is their side in pixels; None is the model's native resolution. `scheduler` is a name (None: the model's
    own), `before` is `always`, `auto` or `never`.
    """

    prompts: tuple[str, ...] = ()
    count: int = 4
    steps: int = 20
    guidance: float = 5.0
    size: int | None = None
    seed: int = 0
    seeds: tuple[int, ...] | None = None
    negative: str | None = None
    scheduler: str | None = None
    before: str = "always"

    @property
    def texts(self) -> tuple[str, ...]:
        """The prompts and the negative prompt: all texts that may contain embeddings."""
        return self.prompts if self.negative is None else (*self.prompts, self.negative)

    def first_seed(self, number: int) -> int:
        """The seed of the first image of the prompt with this index."""
        return self.seeds[number] if self.seeds else self.seed


@dataclass(frozen=True)
class ValidationSpec:
    """Held-out images, a `share` of the training images or those of a `concept`, and how often their loss is measured.

    Each is measured with `draws` noises and timesteps.
    """

    every: Every
    share: float | None = None
    concept: Concept | None = None
    draws: int = 4


@dataclass(frozen=True)
class CheckpointRule:
    """How often a train stage writes a checkpoint, and how many of the newest are kept."""

    every: Every = DEFAULT_INTERVAL
    keep: int = 2


@dataclass(frozen=True)
class Recipe:
    """A recipe with all defaults and absolute paths."""

    path: Path
    name: str
    seed: int
    device: str
    model: ModelSpec
    concepts: tuple[Concept, ...]
    embeddings: tuple[EmbeddingSpec, ...]
    stages: tuple[Stage, ...]
    samples: Samples = field(default_factory=Samples)
    data: DataSpec = field(default_factory=DataSpec)
    checkpoint: CheckpointRule = field(default_factory=CheckpointRule)
    validation: ValidationSpec | None = None
    threads: int | None = None
    description: str = ""

    @cached_property
    def trained(self) -> dict[str, EmbeddingSpec]:
        """The embeddings with train = true, by placeholder."""
        return {embedding.placeholder: embedding for embedding in self.embeddings if embedding.train}

    @property
    def all_concepts(self) -> tuple[Concept, ...]:
        """The concepts, and that of validation: all whose files a run reads."""
        held_out = self.validation.concept if self.validation else None
        return self.concepts if held_out is None else (*self.concepts, held_out)

    @property
    def lora_bases(self) -> tuple[str, ...]:
        """The files of `lora.base`, each once."""
        tables = [table for _, options in self.stages_with(TrainOptions) for table in options.lora]
        return tuple(dict.fromkeys(table.base for table in tables if table.base is not None))

    @property
    def fixed_loras(self) -> tuple[LoraOptions, ...]:
        """The LoRAs that are added to the model for the whole run: those of the first train stage."""
        return next((options.fixed_loras for _, options in self.stages_with(TrainOptions)), ())

    @property
    def exports_best(self) -> bool:
        """Whether the state with the best validation is exported."""
        return any(options.from_ == "best" for _, options in self.stages_with(ExportOptions))

    @cached_property
    def outputs(self) -> frozenset[str]:
        """The placeholders of output embeddings."""
        return frozenset(embedding.placeholder for embedding in self.embeddings if embedding.output)

    def stages_with(self, kind: type[T], first: int = 0) -> list[tuple[int, T]]:
        """Index and options of every stage with options of this class, from stage `first` on."""
        numbered = enumerate(self.stages)
        return [(at, stage.options) for at, stage in numbered if at >= first and isinstance(stage.options, kind)]
