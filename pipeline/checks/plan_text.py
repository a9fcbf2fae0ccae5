"""A plan as text and as JSON."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from ..embeddings.initial import InitialTokens
from ..recipe.model import EmbeddingSpec
from ..text import count_of, first_few, first_lines
from .plan import MAX_CAPTIONS, MAX_EMBEDDINGS, Plan, PlannedCaption, PlannedStage
from .survey import Survey

MAX_FOLDERS = 12  # and image sizes
NAMES = {"epsilon": "the noise (epsilon)", "v_prediction": "the velocity (v-prediction)"}


def plan_text(plan: Plan) -> str:
    """The text that `pivotune plan` prints."""
    recipe = plan.recipe
    embeddings = first_few(list(plan.embeddings), MAX_EMBEDDINGS) or "no embeddings"
    lines = [f"{recipe.name}: trains {embeddings} for {recipe.model.base}"]
    if plan.prediction is not None:
        zero_snr = " with zero terminal SNR" if plan.prediction.zero_snr else ""
        lines.append(f"The model predicts {NAMES[plan.prediction.kind]}{zero_snr} ({plan.prediction.source})")
    lines += ["", "Stages"]
    lines += [line for number, stage in enumerate(plan.stages, 1) for line in _stage(number, stage)]
    lines += ["", "Embeddings"] + [
        line for embedding in recipe.embeddings[:MAX_EMBEDDINGS] for line in _embedding(plan, embedding)
    ]
    lines += _more(len(recipe.embeddings))
    lines += ["", *_images(plan)] if plan.surveys else []
    if recipe.validation is not None:
        held_out = count_of(plan.held_out, "image")
        lines.append(f"  validation every {recipe.validation.every} with {held_out} held out, which no step trains")
    lines += ["", *_captions(plan)]
    return "\n".join(lines)


def _stage(number: int, stage: PlannedStage) -> Iterator[str]:
    yield f"  {number}. {stage.kind:<9} {stage.inputs} → {stage.outputs}"
    if stage.steps:
        counts = f"{count_of(stage.steps, 'step')}, {count_of(stage.images, 'image')}, {stage.epochs:.1f} epochs"
        yield f"     {'':<9} {counts}"


def _more(embeddings: int) -> list[str]:
    return [f"  and {embeddings - MAX_EMBEDDINGS:,} more (--json lists all)"] if embeddings > MAX_EMBEDDINGS else []


def _embedding(plan: Plan, embedding: EmbeddingSpec) -> Iterator[str]:
    frozen = "" if embedding.train else ", frozen"
    start = f"initial text {embedding.initial_text!r}" if embedding.base is None else f"file {embedding.base.name}"
    yield f"  {embedding.placeholder}  {start}{frozen}"
    for key, tokens in plan.embeddings[embedding.placeholder].items():
        yield f"    {key}: {_tokens(tokens)}"


def _tokens(tokens: InitialTokens) -> str:
    kept = join_tokens(tokens.pieces[: tokens.kept]) or "nothing"
    text = f"{count_of(len(tokens.ids), 'vector')}: {kept}"
    if tokens.cut:
        text += f"; truncated {join_tokens(tokens.cut)}"
    if tokens.padded:
        text += f"; padded with {join_tokens(tokens.pieces[tokens.kept :])}"
    return text


def join_tokens(pieces: Sequence[str]) -> str:
    """Tokens as text; `·` joins the tokens of one word of the text: `ring em·blem`."""
    return "".join(f"{p.removesuffix('</w>')} " if p.endswith("</w>") else f"{p}·" for p in pieces).rstrip(" ")


def _images(plan: Plan) -> Iterator[str]:
    """The images of an epoch; identical train stages are listed once."""
    yield "Images"
    shown: list[Survey] = []
    for index, epoch in plan.surveys.items():
        if epoch in shown:
            continue
        shown.append(epoch)
        stage = f" of stage {index + 1}" if len(set(map(repr, plan.surveys.values()))) > 1 else ""
        lines = first_lines(_concepts(epoch, stage), MAX_FOLDERS, "folder of images", "folders of images")
        yield from (f"  {line}" for line in lines)
        sizes = [f"{size} ({count})" for size, count in epoch.shapes.items()]
        yield f"  cropped to {first_few(sizes, MAX_FOLDERS, 'size')}"
        size = count_of(epoch.shown / epoch.batches, "image")
        yield f"  {count_of(epoch.batches, 'batch', 'batches')} per epoch with {size} each on average"
        for embedding, (count, times) in list(epoch.embeddings.items())[:MAX_EMBEDDINGS]:
            yield f"  {embedding}: in {count} of {count_of(plan.images, 'image')}, {_sampled(times)}"


def _sampled(times: float) -> str:
    return f"sampled {count_of(times, 'time')} per epoch"


def _concepts(epoch: Survey, stage: str) -> list[str]:
    """A line for each concept."""
    lines = []
    for row in epoch.concepts:
        facts = [count_of(row.images, "image"), f"{_sampled(row.shown)}{stage}"]
        facts += [f"{row.masked} with a mask"] if row.masked else []
        facts += [f"loss weight {row.loss_weight:g}"] if row.loss_weight != 1 else []
        facts += ["prior"] if row.prior else []
        lines.append(f"{row.folder}: {', '.join(facts)}")
    return lines


def _captions(plan: Plan) -> Iterator[str]:
    counts = [f"{embedding} in {count}" for embedding, count in plan.captions_with.items()]
    rest = f"; {first_few(counts, MAX_EMBEDDINGS)}" if counts else ""
    yield f"Captions: {len(plan.captions)}, on {count_of(plan.images, 'image')}{rest}"
    distinct = list({caption.before: caption for caption in plan.captions}.values())
    for caption in distinct[:MAX_CAPTIONS]:
        tokens = ", ".join(f"{key} {count} of {plan.limits[key]} tokens" for key, count in caption.tokens.items())
        yield f"  {caption.before}"
        yield f"    → {caption.after}  ({tokens})"
    if len(distinct) > MAX_CAPTIONS:
        yield f"  and {len(distinct) - MAX_CAPTIONS} more"
    lines = [f"{one.image}: truncated before {', '.join(one.truncated)}" for one in plan.truncated]
    yield from (f"  warning: {line}" for line in [*plan.long_captions, *first_lines(lines, 10, "caption")])


def plan_json(plan: Plan) -> dict[str, Any]:
    """The plan as JSON."""
    return {
        "name": plan.recipe.name,
        "model": plan.recipe.model.base,
        "prediction": None if plan.prediction is None else vars(plan.prediction),
        "stages": [vars(stage) for stage in plan.stages],
        "embeddings": {
            embedding: {key: vars(made) for key, made in by_key.items()}
            for embedding, by_key in plan.embeddings.items()
        },
        "token_limits": plan.limits,
        "images": plan.images,
        "held_out": plan.held_out,
        "captions_with": plan.captions_with,
        "epochs": {
            str(index + 1): {
                **vars(epoch),
                "concepts": [vars(row) for row in epoch.concepts],
                "embeddings": {
                    embedding: {"images": count, "shown": shown}
                    for embedding, (count, shown) in epoch.embeddings.items()
                },
            }
            for index, epoch in plan.surveys.items()
        },
        "captions": [_caption_json(caption) for caption in plan.captions],
    }


def _caption_json(caption: PlannedCaption) -> dict[str, Any]:
    about = {name: value for name, value in vars(caption).items() if name != "path"}
    return {"image": caption.image, **about}
