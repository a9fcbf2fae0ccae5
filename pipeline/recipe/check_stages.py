"""The order of stages, and options that cannot be used together or not with this family."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ...converters.families import Family
from .check_objective import objective_findings
from .check_train import train_findings
from .check_training import table_findings
from .model import Recipe, Stage
from .nearest import did_you_mean
from .problem import Finding, Place

# kind: what must have run before it when the recipe has words
_NEEDS = {
    "inject": ("tokenize",),
    "train": ("tokenize", "inject"),
    "rescale": ("tokenize", "inject"),
    "export": ("tokenize",),
}
_ONCE = ("tokenize", "inject")


def order_findings(recipe: Recipe) -> Iterator[Finding]:
    """Stages that are missing, stand twice, or before what they need."""
    kinds = [stage.kind for stage in recipe.stages]
    for index, stage in enumerate(recipe.stages):
        yield from _order(("stage", index), stage, kinds[:index], kinds[index + 1 :], bool(recipe.words))
    if "export" not in kinds:
        text = 'no export stage, so nothing of what is learnt would be written; put a stage with kind = "export" last'
        yield Finding(("stage",), text)


def wordless_findings(recipe: Recipe) -> Iterator[Finding]:
    """A recipe without embeddings has nothing to train."""
    if not recipe.words:
        text = "no word: a run teaches words, and what it tunes of the model is tuned around them; add an [[embedding]]"
        yield Finding(("stage", 0), f"{text} (with train = false the word is used and not taught)")


def stage_findings(recipe: Recipe, family: Family | None) -> Iterator[Finding]:
    """What is wrong with each stage."""
    for index, stage in enumerate(recipe.stages):
        place: Place = ("stage", index)
        if stage.kind == "train":
            yield from train_findings(place, stage.options, recipe, family)
            yield from rate_findings((*place, "learning_rate"), stage.options["learning_rate"], family)
            yield from table_findings(place, stage.options, recipe)
            yield from objective_findings(place, stage.options, recipe.model, family)
        for key in ("to", "preserve_norm"):
            yield from _band((*place, key), stage.options.get(key))
        if stage.kind == "tokenize" and not stage.options["pad_with"].strip():
            yield Finding((*place, "pad_with"), 'a blank text has no token to pad with; use "*"')


def rule_findings(recipe: Recipe, family: Family | None) -> Iterator[Finding]:
    """What is wrong with the learning rates and norms of single embeddings."""
    for index, word in enumerate(recipe.words):
        yield from rate_findings(("embedding", index, "learning_rate"), word.learning_rate, family)
        yield from _band(("embedding", index, "preserve_norm"), word.preserve_norm)


def _order(place: Place, stage: Stage, before: list[str], after: list[str], words: bool) -> Iterator[Finding]:
    kind = stage.kind
    if words:
        for needed in _NEEDS.get(kind, ()):
            if needed not in before:
                way = f"move {needed} up" if needed in after else f'add a [[stage]] with kind = "{needed}"'
                yield Finding(place, f"{kind} needs {needed} before it; {way}")
    if kind == "export" and kind in before:
        yield Finding(place, "export stands here twice; one names all its targets, the files of two would collide")
    if kind == "train" and "export" in before:
        yield Finding(place, "train comes after export, which takes the words out of the model; move export to the end")
    if kind in _ONCE and kind in before:
        yield Finding(place, f"{kind} stands here twice; one is enough for all words")
    if kind == "export" and "train" not in before:
        yield Finding(place, "export comes before any train stage: the words it writes are untrained", "warning")
    if kind == "rescale" and "train" not in before:
        yield Finding(place, "rescale comes before any train stage: it rescales untrained words", "warning")
    if kind == "rescale" and "export" in before:
        yield Finding(place, "rescale comes after export: its result is not written; move export to the end", "warning")


def rate_findings(place: Place, rates: float | dict[str, float] | None, family: Family | None) -> Iterator[Finding]:
    """Learning rates an encoder that name encoders the family has not, or leave one out."""
    if not isinstance(rates, dict) or family is None:
        return
    keys = list(family.widths)
    for key in rates:
        if key not in keys:
            yield Finding((*place, key), f"{family.title} has no text encoder '{key}'{did_you_mean(key, keys)}")
    if place[0] == "stage" and any(known in keys for known in rates):
        for key in [key for key in keys if key not in rates]:
            yield Finding(place, f"no number for {key}; add it, 0 to hold its vectors still")


def _band(place: Place, rule: Any) -> Iterator[Finding]:
    if isinstance(rule, dict) and rule["low"] > rule["high"]:
        yield Finding(place, f"low = {rule['low']} is above high = {rule['high']}")
