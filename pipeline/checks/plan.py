"""What a recipe would do, from its tokenizers alone: no weights, no torch, nothing written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any

from ..data.captions import read_concept
from ..data.tags import longest_form
from ..embeddings.initial import InitialTokens, TokenizedTexts, initial_tokens_of, read_base_vectors
from ..embeddings.placeholders import Replacer
from ..embeddings.truncation import count_tokens
from ..models.checkpoint import Prediction, prediction_of
from ..models.family import family_of, local_path, scheduler_config
from ..models.tokenizers import token_limits
from ..recipe.model import MOST_CHUNKS, Recipe, Stage
from ..recipe.options import (
    Band,
    ExportOptions,
    FinetuneOptions,
    InjectOptions,
    LoraOptions,
    NormRule,
    RescaleOptions,
    TokenizeOptions,
    TrainOptions,
    WeightOptions,
)  # fmt: skip
from ..text import count_of, first_few
from .survey import Survey, stated_resolution, survey, survey_images

MAX_CAPTIONS = 4  # shown
MAX_EMBEDDINGS = 8  # shown
SHORTEN = "shorten them, or move what matters most to the start"


@dataclass(frozen=True)
class PlannedCaption:
    """One caption: its text, the text with vectors spelled out, tokens per text encoder, and truncated embeddings."""

    path: Path
    before: str
    after: str
    tokens: dict[str, int]
    truncated: tuple[str, ...]

    @property
    def image(self) -> str:
        return self.path.name


@dataclass(frozen=True)
class PlannedStage:
    """One stage: its input and output, and for a train stage its images and epochs."""

    kind: str
    inputs: str
    outputs: str
    steps: int = 0
    images: int = 0
    epochs: float = 0.0


@dataclass(frozen=True)
class Plan:
    """Everything that `pivotune plan` shows. `limits` are the token limits by encoder key.

    `prompts` are the prompts of the sample images. `surveys` describes an epoch of each train stage, by stage index.
    `captions_with` counts the captions of each embedding. `prediction` is that of a diffusion model, if it is known.
    `held_out` is the number of images for validation. `chunkable`: the family has `model.prompt_chunks`.
    """

    recipe: Recipe
    embeddings: dict[str, dict[str, InitialTokens]]
    limits: dict[str, int]
    stages: tuple[PlannedStage, ...]
    captions: tuple[PlannedCaption, ...]
    prompts: tuple[PlannedCaption, ...]
    images: int
    captions_with: dict[str, int]
    surveys: dict[int, Survey]
    prediction: Prediction | None = None
    held_out: int = 0
    chunkable: bool = False

    @property
    def truncated(self) -> list[PlannedCaption]:
        """Captions that are truncated before an embedding."""
        return [caption for caption in self.captions if caption.truncated]

    @property
    def always_truncated(self) -> list[str]:
        """Trained embeddings that are beyond the token limit in all of their captions."""
        counts = Counter(embedding for caption in self.truncated for embedding in caption.truncated)
        trained = ((embedding, self.captions_with[embedding]) for embedding in self.recipe.trained)
        return [embedding for embedding, count in trained if 0 < count <= counts[embedding]]

    @property
    def truncation_warning(self) -> str | None:
        """A line about captions that are truncated before an embedding, except those in `always_truncated`."""
        always = set(self.always_truncated)
        found = [caption for caption in self.captions if set(caption.truncated) - always]
        if not found:
            return None
        share = f"{len(found)} of {count_of(len(self.captions), 'caption')} {'is' if len(found) == 1 else 'are'}"
        example = f"(for example that of {found[0].image}: {', '.join(found[0].truncated)})"
        return f"{share} truncated before an embedding {example}; move the embedding towards the start{self.or_chunks}"

    @property
    def long_captions(self) -> list[str]:
        """A line for each token limit that captions exceed: how many do, and by how much on average."""
        keys: dict[tuple[int, int, int], list[str]] = {}  # limit, captions, tokens that are cut on average
        for key, limit in self.limits.items():
            cut = [caption.tokens[key] - limit for caption in self.captions if caption.tokens[key] > limit]
            if cut:
                keys.setdefault((limit, len(cut), round(sum(cut) / len(cut))), []).append(key)
        lines = []
        for (limit, count, mean), names in keys.items():
            share = f"{count} of {count_of(len(self.captions), 'caption')} {'is' if count == 1 else 'are'}"
            of = f" of {' and '.join(names)}" if len(self.limits) > 1 else ""
            cut_tokens = f"{count_of(mean, 'token')} {'is' if mean == 1 else 'are'} cut"
            lines.append(f"{share} longer than {limit} tokens{of}; on average {cut_tokens}; {SHORTEN}{self.or_chunks}")
        return lines

    @property
    def or_chunks(self) -> str:
        """What else helps against truncated captions: more chunks, for a family that has them."""
        chunks = self.recipe.model.prompt_chunks
        if not self.chunkable or chunks == MOST_CHUNKS:
            return ""
        limit = next(iter(self.limits.values())) // chunks
        longest = max((count for one in (*self.captions, *self.prompts) for count in one.tokens.values()), default=0)
        return f", or set model.prompt_chunks = {min(MOST_CHUNKS, max(chunks + 1, ceil(longest / limit)))}"


def make_plan(recipe: Recipe, tokenizers: Mapping[str, Any]) -> Plan:
    """The plan of a checked recipe. ValueError if the padding text has no token, ConvertError for an unusable base."""
    pad_with = next((options.pad_with for _, options in recipe.stages_with(TokenizeOptions)), "*")
    texts = {
        key: TokenizedTexts(tokenizer, (embedding.initial_text for embedding in recipe.embeddings))
        for key, tokenizer in tokenizers.items()
    }
    embeddings = {
        embedding.placeholder: {
            key: initial_tokens_of(own, embedding, pad_with, base, key) for key, own in texts.items()
        }
        for embedding, base in (
            (embedding, read_base_vectors(embedding, list(tokenizers))) for embedding in recipe.embeddings
        )
    }
    family, prediction = family_of(recipe.model), None
    chunks = recipe.model.prompt_chunks
    limits = token_limits(family, tokenizers, chunks)
    if family is not None and family.objective == "diffusion":
        prediction = prediction_of(local_path(recipe.model), scheduler_config(recipe.model))
    images = survey_images(recipe)
    native = stated_resolution(recipe.model) or 512
    surveys = {
        index: survey(recipe, images, options.resolution or native, options.batch_size)
        for index, options in recipe.stages_with(TrainOptions)
        if images
    }
    pairs = [
        (image.path, tuple(longest_form(text, recipe.concepts[image.concept]) for text in image.captions))
        for image in images
    ]
    sizes = {
        embedding: {key: len(tokens.ids) for key, tokens in made.items()} for embedding, made in embeddings.items()
    }
    captions = tuple(_captions(pairs, sizes, limits, texts, chunks))
    prompts = tuple(_captions([(Path("prompt"), recipe.samples.prompts)], sizes, limits, texts, chunks))
    replacer = Replacer(embeddings)
    counts = Counter(embedding for caption in captions for embedding in replacer.embeddings_in(caption.before))
    captions_with = {embedding: counts[embedding] for embedding in embeddings}
    stages = tuple(_stage(recipe, index, stage, surveys.get(index)) for index, stage in enumerate(recipe.stages))
    counted = (len(pairs), captions_with, surveys)
    every = sum(len(read_concept(concept).images) for concept in recipe.all_concepts) if recipe.validation else 0
    held_out, chunkable = max(0, every - len(pairs)), family is not None and family.prompt_chunks
    return Plan(recipe, embeddings, limits, stages, captions, prompts, *counted, prediction, held_out, chunkable)


def spelled_out(embedding: str, vectors: int) -> str:
    """An embedding's vectors as text: `[<emblem> 1][<emblem> 2]`."""
    return "".join(f"[{embedding} {number}]" for number in range(1, vectors + 1))


def _captions(
    pairs: list[tuple[Path, tuple[str, ...]]],
    sizes: Mapping[str, Mapping[str, int]],
    limits: Mapping[str, int],
    known: Mapping[str, TokenizedTexts],
    chunks: int,
) -> Iterator[PlannedCaption]:
    replacer = Replacer(sizes)
    texts = {embedding: spelled_out(embedding, max(counts.values())) for embedding, counts in sizes.items()}
    by_key = {key: {embedding: counts[key] for embedding, counts in sizes.items()} for key in known}
    for path, captions in pairs:
        for caption in captions:
            tokens, truncated = {}, {}
            for key, own in known.items():
                tokens[key], beyond = count_tokens(caption, replacer, by_key[key], own, limits[key], chunks)
                truncated.update(dict.fromkeys(beyond))
            yield PlannedCaption(path, caption, replacer.replace(caption, texts), tokens, tuple(truncated))


def _stage(recipe: Recipe, index: int, stage: Stage, epoch: Survey | None) -> PlannedStage:
    options = stage.options
    if isinstance(options, TrainOptions):
        return _train_stage(recipe, options, epoch)
    inputs, outputs = options.INPUTS, options.OUTPUTS
    if isinstance(options, InjectOptions) and options.encoders:
        outputs += f" ({', '.join(options.encoders)} only)"
    if isinstance(options, RescaleOptions):
        outputs = f"vectors of norm {_rule(options.to)}"
    if isinstance(options, ExportOptions):
        inputs, outputs = inputs + _with_more(recipe, index), f"files for {', '.join(options.targets)}"
    return PlannedStage(stage.kind, inputs, outputs)


def _train_stage(recipe: Recipe, options: TrainOptions, epoch: Survey | None) -> PlannedStage:
    epochs = options.steps * options.gradient_accumulation / epoch.batches if epoch else 0.0
    images = round(epochs * epoch.shown) if epoch else 0
    trained = list(recipe.trained) if options.embeddings else []
    parts = [f"vectors of {first_few(trained, MAX_EMBEDDINGS)}"] if trained else []
    parts += [f"{_lora(table)} on {_parts(table)}" for table in options.trained_loras]
    parts += [f"weights of {_parts(table)}{_layers(table)}" for table in options.finetune]
    under = [f"{Path(table.base or '').name} (strength {table.strength:g})" for table in options.fixed_loras]
    outputs = "trained " + _and(parts) + (f", under the LoRA {_and(under)}" if under else "")
    return PlannedStage("train", options.INPUTS, outputs, options.steps, images, epochs)


def _lora(table: LoraOptions) -> str:
    return f"a LoRA of rank {table.rank}" if table.base is None else f"the LoRA {Path(table.base).name}"


def _and(items: list[str]) -> str:
    return " and ".join([", ".join(items[:-1]), items[-1]] if len(items) > 1 else items)


def _parts(table: WeightOptions) -> str:
    return _and(["the denoiser" if part == "denoiser" else part for part in table.parts])


def _layers(table: FinetuneOptions) -> str:
    layers = table.layers
    if layers == "all":
        return ""
    return f" ({layers if isinstance(layers, str) else 'names with ' + ', '.join(layers)})"


def _with_more(recipe: Recipe, index: int) -> str:
    """The other results of earlier train stages that an export writes."""
    trained = [options for at, options in recipe.stages_with(TrainOptions) if at < index]
    lora = " and the LoRA" if any(options.trained_loras for options in trained) else ""
    return lora + (" and the fine-tuned model" if any(options.finetune for options in trained) else "")


def _rule(rule: NormRule) -> str:
    if isinstance(rule, Band):
        return f"{rule.low:g} to {rule.high:g}"
    if isinstance(rule, str):
        return "before training" if rule == "initial" else f"{rule} of the vocabulary"
    return f"{rule:g}"
