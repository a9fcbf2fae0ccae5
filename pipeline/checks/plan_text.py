"""A plan as a page for people, and as JSON for programs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from ..embeddings.initial import InitialTokens
from ..recipe.model import EmbeddingSpec
from .plan import EXAMPLES, SHOWN, Plan, PlannedCaption, PlannedStage, some
from .survey import Survey

SHAPES = 12  # shapes, and folders of images, that are listed


def plan_text(plan: Plan) -> str:
    """The page that `pivotune plan` prints."""
    recipe = plan.recipe
    embeddings = some(list(plan.embeddings)) or "no embedding"
    lines = [f"{recipe.name}: teaches {embeddings} to {recipe.model.base}", "", "Stages"]
    lines += [line for number, stage in enumerate(plan.stages, 1) for line in _stage(number, stage)]
    lines += ["", "Embeddings"] + [
        line for embedding in recipe.embeddings[:SHOWN] for line in _embedding(plan, embedding)
    ]
    lines += _more(len(recipe.embeddings))
    lines += (["", *_images(plan)] if plan.surveys else []) + ["", *_captions(plan)]
    return "\n".join(lines)


def _stage(number: int, stage: PlannedStage) -> Iterator[str]:
    yield f"  {number}. {stage.kind:<9} {stage.takes} → {stage.gives}"
    if stage.steps:
        yield f"     {'':<9} {stage.steps} steps, {stage.images} images seen, {stage.epochs:.1f} epochs"


def _more(embeddings: int) -> list[str]:
    return [f"  and {embeddings - SHOWN:,} more; --json has them all"] if embeddings > SHOWN else []


def _embedding(plan: Plan, embedding: EmbeddingSpec) -> Iterator[str]:
    still = "" if embedding.train else ", not trained"
    start = f"the text {embedding.initial_text!r}" if embedding.base is None else f"the file {embedding.base.name}"
    yield f"  {embedding.placeholder}  from {start}{still}"
    for key, tokens in plan.embeddings[embedding.placeholder].items():
        yield f"    {key}: {_tokens(tokens)}"


def _tokens(tokens: InitialTokens) -> str:
    kept = joined(tokens.pieces[: tokens.kept]) or "nothing"
    text = f"{len(tokens.ids)} {'vector' if len(tokens.ids) == 1 else 'vectors'}: kept {kept}"
    if tokens.cut:
        text += f"; cut {joined(tokens.cut)}"
    if tokens.padded:
        text += f"; padded {joined(tokens.pieces[tokens.kept :])}"
    return text


def joined(pieces: Sequence[str]) -> str:
    """Tokens as embeddings, with `·` where an embedding goes on in the next token: `ring em·blem`."""
    return "".join(f"{p.removesuffix('</w>')} " if p.endswith("</w>") else f"{p}·" for p in pieces).rstrip(" ")


def _images(plan: Plan) -> Iterator[str]:
    """What an epoch shows; once for train stages that see the same."""
    yield "Images"
    said: list[Survey] = []
    for index, seen in plan.surveys.items():
        if seen in said:
            continue
        said.append(seen)
        mark = f" of stage {index + 1}" if len(set(map(repr, plan.surveys.values()))) > 1 else ""
        for row in seen.concepts[:SHAPES]:
            about = [f"{row.images} images", f"shown {row.shown:.4g} times an epoch{mark}"]
            about += [f"{row.masked} with a mask"] if row.masked else []
            about += [f"loss x {row.loss_weight:g}"] if row.loss_weight != 1 else []
            about += ["prior"] if row.prior else []
            yield f"  {row.folder}: {', '.join(about)}"
        if len(seen.concepts) > SHAPES:
            yield f"  and {len(seen.concepts) - SHAPES:,} more folders of images"
        shapes = list(seen.shapes.items())
        more = f" and {len(shapes) - SHAPES} more shapes" if len(shapes) > SHAPES else ""
        yield f"  cut to {', '.join(f'{shape} ({count})' for shape, count in shapes[:SHAPES])}{more}"
        yield f"  {seen.batches} batches an epoch, {seen.shown / seen.batches:.3g} images each on average"
        for embedding, (count, shown) in list(seen.embeddings.items())[:SHOWN]:
            yield f"  {embedding}: in {count} of {plan.images} images, shown {shown:.4g} times an epoch"


def _captions(plan: Plan) -> Iterator[str]:
    total = len(plan.captions)
    held = some([f"{embedding} in {count}" for embedding, count in plan.holding.items()])
    yield f"Captions: {total}, on {plan.images} images" + (f"; {held}" if held else "")
    distinct = list({caption.before: caption for caption in plan.captions}.values())
    for caption in distinct[:EXAMPLES]:
        counts = ", ".join(f"{key} {count} of {plan.limits[key]} tokens" for key, count in caption.tokens.items())
        yield f"  {caption.before}"
        yield f"    → {caption.after}  ({counts})"
    if len(distinct) > EXAMPLES:
        yield f"  and {len(distinct) - EXAMPLES} more"
    for caption in plan.lost[:10]:
        yield f"  warning: {caption.image}: {', '.join(caption.lost)} stands behind the token limit and is never seen"
    if len(plan.lost) > 10:
        yield f"  warning: and {len(plan.lost) - 10} more captions like these"


def plan_json(plan: Plan) -> dict[str, Any]:
    """The same as data."""
    return {
        "name": plan.recipe.name,
        "model": plan.recipe.model.base,
        "stages": [vars(stage) for stage in plan.stages],
        "embeddings": {
            embedding: {key: vars(made) for key, made in by_key.items()}
            for embedding, by_key in plan.embeddings.items()
        },
        "token_limits": plan.limits,
        "images": plan.images,
        "captions_with": plan.holding,
        "epochs": {
            str(index + 1): {
                **vars(seen),
                "concepts": [vars(row) for row in seen.concepts],
                "embeddings": {
                    embedding: {"images": count, "shown": shown}
                    for embedding, (count, shown) in seen.embeddings.items()
                },
            }
            for index, seen in plan.surveys.items()
        },
        "captions": [_caption_json(caption) for caption in plan.captions],
    }


def _caption_json(caption: PlannedCaption) -> dict[str, Any]:
    about = {name: value for name, value in vars(caption).items() if name != "path"}
    return {"image": caption.image, **about}
