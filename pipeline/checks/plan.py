"""What a recipe would do, found out with its tokenizers alone: no weights, no torch, nothing written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..embeddings.initial import InitialTokens, Texts, start_of, start_tokens
from ..embeddings.placeholders import Replacer
from ..models.tokenizers import token_limit
from ..recipe.model import Recipe, Stage
from ..recipe.options import (
    Band,
    ExportOptions,
    FinetuneOptions,
    InjectOptions,
    NormRule,
    RescaleOptions,
    TokenizeOptions,
    TrainOptions,
    WeightOptions,
)  # fmt: skip
from .survey import Survey, stated_resolution, survey, survey_images

EXAMPLES = 4  # captions that are shown
SHOWN = 8  # embeddings that are shown


@dataclass(frozen=True)
class PlannedCaption:
    """One caption: as it is, with embeddings spelled out, its tokens for each encoder, and embeddings lost at the
    limit.
    """

    path: Path
    before: str
    after: str
    tokens: dict[str, int]
    lost: tuple[str, ...]

    @property
    def image(self) -> str:
        return self.path.name


@dataclass(frozen=True)
class PlannedStage:
    """One stage: what it takes, what it gives, and for a train stage what it sees."""

    kind: str
    takes: str
    gives: str
    steps: int = 0
    images: int = 0
    epochs: float = 0.0


@dataclass(frozen=True)
class Plan:
    """Everything that `pivotune plan` shows. `limits` is tokens a text may have, by encoder key.

    `prompts` are those of the images for the report, told as captions are.
    `surveys` says for each train stage, by its place among the stages, what an epoch of it shows.
    """

    recipe: Recipe
    embeddings: dict[str, dict[str, InitialTokens]]
    limits: dict[str, int]
    stages: tuple[PlannedStage, ...]
    captions: tuple[PlannedCaption, ...]
    prompts: tuple[PlannedCaption, ...]
    images: int
    holding: dict[str, int]
    surveys: dict[int, Survey]

    @property
    def lost(self) -> list[PlannedCaption]:
        """Captions in which an embedding stands behind the token limit, so that it is never seen."""
        return [caption for caption in self.captions if caption.lost]

    @property
    def never_seen(self) -> list[str]:
        """Embeddings that stand behind the token limit in every caption that holds them."""
        lost = Counter(embedding for caption in self.lost for embedding in caption.lost)
        return [embedding for embedding, count in self.holding.items() if 0 < count <= lost[embedding]]


def make_plan(recipe: Recipe, tokenizers: Mapping[str, Any]) -> Plan:
    """The plan of a checked recipe. ValueError when the padding text has no token, ConvertError for a useless base."""
    pad_with = next((options.pad_with for _, options in recipe.stages_with(TokenizeOptions)), "*")
    texts = {
        key: Texts(tokenizer, (embedding.initial_text for embedding in recipe.embeddings))
        for key, tokenizer in tokenizers.items()
    }
    embeddings = {
        embedding.placeholder: {key: start_tokens(own, embedding, pad_with, base, key) for key, own in texts.items()}
        for embedding, base in ((embedding, start_of(embedding, list(tokenizers))) for embedding in recipe.embeddings)
    }
    limits = {key: token_limit(tokenizer) for key, tokenizer in tokenizers.items()}
    seen = survey_images(recipe)
    usual = stated_resolution(recipe.model) or 512
    surveys = {
        index: survey(recipe, seen, options.resolution or usual, options.batch_size)
        for index, options in recipe.stages_with(TrainOptions)
        if seen
    }
    pairs = [(one.path, one.captions) for one in seen]
    sizes = {
        embedding: {key: len(tokens.ids) for key, tokens in made.items()} for embedding, made in embeddings.items()
    }
    captions = tuple(_captions(pairs, sizes, limits, texts))
    asked = tuple(_captions([(Path("prompt"), recipe.samples.prompts)], sizes, limits, texts))
    replacer = Replacer(embeddings)
    held = Counter(embedding for caption in captions for embedding in replacer.embeddings_in(caption.before))
    holding = {embedding: held[embedding] for embedding in embeddings}
    stages = tuple(_stage(recipe, index, stage, surveys.get(index)) for index, stage in enumerate(recipe.stages))
    return Plan(recipe, embeddings, limits, stages, captions, asked, len(pairs), holding, surveys)


def spelled_out(embedding: str, vectors: int) -> str:
    """How a plan writes an embedding's vectors: `[<emblem> 1][<emblem> 2]`."""
    return "".join(f"[{embedding} {number}]" for number in range(1, vectors + 1))


def _captions(
    pairs: list[tuple[Path, tuple[str, ...]]],
    sizes: Mapping[str, Mapping[str, int]],
    limits: Mapping[str, int],
    known: Mapping[str, Texts],
) -> Iterator[PlannedCaption]:
    replacer = Replacer(sizes)
    texts = {embedding: spelled_out(embedding, max(counts.values())) for embedding, counts in sizes.items()}
    by_key = {key: {embedding: counts[key] for embedding, counts in sizes.items()} for key in known}
    for path, captions in pairs:
        for caption in captions:
            tokens, lost = {}, {}
            for key, own in known.items():
                tokens[key], beyond = _count(caption, replacer, by_key[key], own, limits[key])
                lost.update(dict.fromkeys(beyond))
            yield PlannedCaption(path, caption, replacer.replace(caption, texts), tokens, tuple(lost))


def _count(text: str, replacer: Replacer, sizes: Mapping[str, int], known: Texts, limit: int) -> tuple[int, list[str]]:
    """Tokens of a text, and the embeddings of which a vector stands behind the limit wherever they stand in it."""
    total, end, beyond, seen = 0, 0, list[str](), set[str]()
    for found in replacer.find(text):
        total += len(known.ids(text[end : found.start])) + sizes[found.embedding]
        end = found.end
        if total <= limit:
            seen.add(found.embedding)
        elif found.embedding not in seen:
            beyond.append(found.embedding)
    return total + len(known.ids(text[end:])), beyond


def _stage(recipe: Recipe, index: int, stage: Stage, seen: Survey | None) -> PlannedStage:
    options = stage.options
    moving = [embedding.placeholder for embedding in recipe.embeddings if embedding.train]
    if isinstance(options, TokenizeOptions):
        return PlannedStage(stage.kind, "initial texts", "first vectors of every embedding")
    if isinstance(options, InjectOptions):
        which = f" ({', '.join(options.encoders)} only)" if options.encoders else ""
        return PlannedStage(
            stage.kind, "first vectors", f"tokenizers and text encoders{which} that know the embeddings"
        )
    if isinstance(options, RescaleOptions):
        return PlannedStage(stage.kind, "trained vectors", f"vectors of norm {_rule(options.to)}")
    if isinstance(options, ExportOptions):
        return PlannedStage(
            stage.kind, "vectors" + _with_more(recipe, index), f"files for {', '.join(options.targets)}"
        )
    epochs = options.steps * options.gradient_accumulation / seen.batches if seen else 0.0
    images = round(epochs * seen.shown) if seen else 0
    trainables = [f"vectors of {some(moving)}"] if options.embeddings and moving else []
    trainables += [f"a LoRA of rank {table.rank} on {_parts(table)}" for table in options.lora]
    trainables += [f"weights of {_parts(table)}{_layers(table)}" for table in options.finetune]
    return PlannedStage("train", "images, captions", "trained " + _and(trainables), options.steps, images, epochs)


def some(names: Sequence[str]) -> str:
    """The first few names, and how many more there are."""
    more = f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def _and(trainables: list[str]) -> str:
    return " and ".join([", ".join(trainables[:-1]), trainables[-1]] if len(trainables) > 1 else trainables)


def _parts(table: WeightOptions) -> str:
    return _and(["the denoiser" if part == "denoiser" else part for part in table.parts])


def _layers(table: FinetuneOptions) -> str:
    layers = table.layers
    return "" if layers == "all" else f" ({layers if isinstance(layers, str) else 'those with ' + ', '.join(layers)})"


def _with_more(recipe: Recipe, index: int) -> str:
    """What the stages before an export leave for it beside the embeddings."""
    trained = [options for at, options in recipe.stages_with(TrainOptions) if at < index]
    lora = " and the LoRA" if any(options.lora for options in trained) else ""
    return lora + (" and the fine-tuned model" if any(options.finetune for options in trained) else "")


def _rule(rule: NormRule) -> str:
    if isinstance(rule, Band):
        return f"{rule.low:g} to {rule.high:g}"
    return (
        f"{rule:g}"
        if isinstance(rule, (int, float))
        else f"{rule} of the vocabulary"
        if rule != "initial"
        else "at the start"
    )
