"""A plan as a page for people, and as JSON for programs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from ..embeddings.initial import InitialTokens
from ..recipe.model import Word
from .plan import EXAMPLES, SHOWN, Plan, PlannedCaption, PlannedStage, some
from .survey import Survey

SHAPES = 12  # shapes, and folders of pictures, that are listed


def plan_text(plan: Plan) -> str:
    """The page that `pivotune plan` prints."""
    recipe = plan.recipe
    words = some(list(plan.words)) or "no word"
    lines = [f"{recipe.name}: teaches {words} to {recipe.model.base}", "", "Stages"]
    lines += [line for number, stage in enumerate(plan.stages, 1) for line in _stage(number, stage)]
    lines += ["", "Words"] + [line for word in recipe.words[:SHOWN] for line in _word(plan, word)]
    lines += _more(len(recipe.words))
    lines += (["", *_pictures(plan)] if plan.surveys else []) + ["", *_captions(plan)]
    return "\n".join(lines)


def _stage(number: int, stage: PlannedStage) -> Iterator[str]:
    yield f"  {number}. {stage.kind:<9} {stage.takes} → {stage.gives}"
    if stage.steps:
        yield f"     {'':<9} {stage.steps} steps, {stage.pictures} pictures seen, {stage.epochs:.1f} epochs"


def _more(words: int) -> list[str]:
    return [f"  and {words - SHOWN:,} more; --json has them all"] if words > SHOWN else []


def _word(plan: Plan, word: Word) -> Iterator[str]:
    still = "" if word.train else ", not trained"
    start = f"the text {word.initial_text!r}" if word.base is None else f"the file {word.base.name}"
    yield f"  {word.placeholder}  from {start}{still}"
    for key, tokens in plan.words[word.placeholder].items():
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
    """Tokens as words, with `·` where a word goes on in the next token: `ring em·blem`."""
    return "".join(f"{p.removesuffix('</w>')} " if p.endswith("</w>") else f"{p}·" for p in pieces).rstrip(" ")


def _pictures(plan: Plan) -> Iterator[str]:
    """What an epoch shows; once for train stages that see the same."""
    yield "Pictures"
    said: list[Survey] = []
    for index, seen in plan.surveys.items():
        if seen in said:
            continue
        said.append(seen)
        mark = f" of stage {index + 1}" if len(set(map(repr, plan.surveys.values()))) > 1 else ""
        for row in seen.concepts[:SHAPES]:
            about = [f"{row.pictures} pictures", f"shown {row.shown:.4g} times an epoch{mark}"]
            about += [f"{row.masked} with a mask"] if row.masked else []
            about += [f"loss x {row.loss_weight:g}"] if row.loss_weight != 1 else []
            about += ["prior"] if row.prior else []
            yield f"  {row.images}: {', '.join(about)}"
        if len(seen.concepts) > SHAPES:
            yield f"  and {len(seen.concepts) - SHAPES:,} more folders of pictures"
        shapes = list(seen.shapes.items())
        more = f" and {len(shapes) - SHAPES} more shapes" if len(shapes) > SHAPES else ""
        yield f"  cut to {', '.join(f'{shape} ({count})' for shape, count in shapes[:SHAPES])}{more}"
        yield f"  {seen.batches} batches an epoch, {seen.shown / seen.batches:.3g} pictures each on average"
        for word, (count, shown) in list(seen.words.items())[:SHOWN]:
            yield f"  {word}: in {count} of {plan.pictures} pictures, shown {shown:.4g} times an epoch"


def _captions(plan: Plan) -> Iterator[str]:
    total = len(plan.captions)
    held = some([f"{word} in {count}" for word, count in plan.holding.items()])
    yield f"Captions: {total}, on {plan.pictures} pictures" + (f"; {held}" if held else "")
    distinct = list({caption.before: caption for caption in plan.captions}.values())
    for caption in distinct[:EXAMPLES]:
        counts = ", ".join(f"{key} {count} of {plan.limits[key]} tokens" for key, count in caption.tokens.items())
        yield f"  {caption.before}"
        yield f"    → {caption.after}  ({counts})"
    if len(distinct) > EXAMPLES:
        yield f"  and {len(distinct) - EXAMPLES} more"
    for caption in plan.lost[:10]:
        yield f"  warning: {caption.picture}: {', '.join(caption.lost)} stands behind the token limit and is never seen"
    if len(plan.lost) > 10:
        yield f"  warning: and {len(plan.lost) - 10} more captions like these"


def plan_json(plan: Plan) -> dict[str, Any]:
    """The same as data."""
    return {
        "name": plan.recipe.name,
        "model": plan.recipe.model.base,
        "stages": [vars(stage) for stage in plan.stages],
        "words": {word: {key: vars(made) for key, made in by_key.items()} for word, by_key in plan.words.items()},
        "token_limits": plan.limits,
        "pictures": plan.pictures,
        "captions_with": plan.holding,
        "epochs": {
            str(index + 1): {
                **vars(seen),
                "concepts": [vars(row) for row in seen.concepts],
                "words": {word: {"pictures": count, "shown": shown} for word, (count, shown) in seen.words.items()},
            }
            for index, seen in plan.surveys.items()
        },
        "captions": [_caption_json(caption) for caption in plan.captions],
    }


def _caption_json(caption: PlannedCaption) -> dict[str, Any]:
    about = {name: value for name, value in vars(caption).items() if name != "path"}
    return {"picture": caption.picture, **about}
