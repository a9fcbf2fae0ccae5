"""What is wrong with the stages of a recipe: their order, and options that cannot be combined."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from ...converters.families import Family
from ..models.family import scheduler_config
from ..recipe.defaults import DENOISER, WEIGHTINGS
from ..recipe.intervals import parse_stop
from ..recipe.model import ModelSpec, Recipe, Stage
from ..recipe.options import (
    Band,
    LearningRate,
    NormRule,
    ObjectiveOptions,
    RescaleOptions,
    TimestepOptions,
    TokenizeOptions,
    TrainOptions,
    WeightOptions,
)  # fmt: skip
from ..recipe.problem import Finding, Place
from ..text import did_you_mean

NAMES = {"diffusion": "a diffusion model", "flow": "a flow matching model"}


def objective_findings(
    place: Place, options: TrainOptions, spec: ModelSpec, family: Family | None
) -> Iterator[Finding]:
    """What of `objective` and `timesteps` has no meaning for this model, or cannot be learnt from."""
    config = scheduler_config(spec)
    yield from _time_steps(place, options.timesteps, config.get("num_train_timesteps"))
    kind = _kind(config, family)
    if kind is None:
        yield from _noiseless(place, options.objective, None)
        return
    objective, where = options.objective, (*place, "objective")
    if objective.weighting not in WEIGHTINGS[kind]:
        text = f"{objective.weighting} is nothing for {NAMES[kind]}; use {', '.join(WEIGHTINGS[kind])}"
        yield Finding((*where, "weighting"), text)
    if kind == "diffusion":
        yield from _noiseless(place, objective, config.get("prediction_type"))
        return
    for key in ("prediction", "zero_terminal_snr"):
        if getattr(objective, key):
            yield Finding((*where, key), f"{key} says nothing for {NAMES[kind]}; leave it out")
    if objective.loss in ("huber", "smooth_l1") and objective.huber.schedule == "snr":
        text = f'huber.schedule = "snr" (the default) is nothing for {NAMES[kind]}; use constant or exponential'
        yield Finding((*where, "huber"), text)


def _kind(config: Mapping[str, Any], family: Family | None) -> str | None:
    """`diffusion` or `flow`, by the model's own scheduler, else as its family has it; None where nobody knows."""
    if "_class_name" in config:
        return "flow" if str(config["_class_name"]).startswith("FlowMatch") else "diffusion"
    return family.objective if family is not None else None


def _noiseless(place: Place, objective: ObjectiveOptions, model: str | None) -> Iterator[Finding]:
    """Predicting the noise where there is nothing else; `model` is what the model's scheduler predicts, if known."""
    if objective.zero_terminal_snr and (objective.prediction or model) == "epsilon":
        text = "at the last time step of zero terminal SNR nothing is to be learnt from predicting the noise"
        yield Finding((*place, "objective"), f'{text}; it needs a model with prediction = "v_prediction"')


def _time_steps(place: Place, times: TimestepOptions, count: int | None) -> Iterator[Finding]:
    high = times.high or count
    if high is not None and times.low >= high:
        end = f"high = {high}" if times.high else f"the model's {count} time steps"
        yield Finding((*place, "timesteps"), f"low = {times.low} leaves no time step below {end} to train")
    if count is not None and (times.high or 0) > count:
        yield Finding((*place, "timesteps"), f"high = {times.high}, but the model has {count} time steps")


def train_findings(place: Place, options: TrainOptions, recipe: Recipe, family: Family | None) -> Iterator[Finding]:
    """What is wrong with one train stage."""
    movable = [embedding for embedding in recipe.embeddings if embedding.train]
    if not options.weight_tables:
        if not options.embeddings:
            yield Finding(
                place, "nothing to train: embeddings = false, no lora and no finetune; add lora = { rank = 16 }"
            )
        elif recipe.embeddings and not movable:  # a recipe without embeddings is told so once
            text = "nothing to train: every [[embedding]] has train = false, and this stage has no lora or finetune"
            yield Finding(place, text)
    elif options.embeddings and recipe.embeddings and not movable:
        text = "embeddings = true, but every [[embedding]] has train = false: embeddings are not trained"
        yield Finding((*place, "embeddings"), text, "warning")
    if options.caption_dropout == 1 and movable and options.embeddings:
        yield Finding((*place, "caption_dropout"), "1 leaves every caption empty, so no embedding is ever seen")
    yield from _parts(place, options, family)
    yield from _moves(place, options, options.steps)


def _parts(place: Place, options: TrainOptions, family: Family | None) -> Iterator[Finding]:
    seen: dict[str, str] = {}
    for name, number, table in options.weight_tables:
        where: Place = (*place, name, number)
        for part in table.parts:
            known = [DENOISER, *(family.widths if family else ())]
            if family is not None and part not in known:
                yield Finding(where, f"{family.title} has no part '{part}'{did_you_mean(part, known)}")
            if part in seen:
                yield Finding(where, f"{part} stands in {seen[part]} and {name} of this stage; one can have it")
            seen[part] = name
        same = table.warmup_steps == options.warmup_steps
        yield from _moves(where, replace(table, warmup_steps=0) if same else table, options.steps)


def _moves(place: Place, table: TrainOptions | WeightOptions, steps: int) -> Iterator[Finding]:
    """Optimizer, rate and warm-up of the embeddings or of a table."""
    kind, warmup, rate = table.optimizer.kind, table.warmup_steps, table.learning_rate
    row = table.optimizer.facts
    if row.missing is not None:
        yield Finding((*place, "optimizer"), f"{kind} needs {row.package}, which is not installed: {row.missing}")
    highest = max(rate.values()) if isinstance(rate, Mapping) else rate
    if row.adaptive and highest < 0.1:
        text = (
            f"{kind} finds its step size itself and learning_rate multiplies it: {highest:g} is far below the usual 1"
        )
        yield Finding((*place, "learning_rate"), text, "warning")
    if (table.schedule.kind == "piecewise") != bool(table.schedule.pieces):
        text = "piecewise and pieces = [[from, factor], ...] belong together"
        yield Finding((*place, "schedule"), text)
    if warmup >= 1 and warmup != int(warmup):
        yield Finding((*place, "warmup_steps"), f"{warmup:g} is neither a number of steps nor a share below 1")
    elif warmup >= steps:
        yield Finding((*place, "warmup_steps"), f"the warm-up takes all of the {steps} steps", "warning")


def table_findings(place: Place, options: TrainOptions, recipe: Recipe) -> Iterator[Finding]:
    """What is wrong with the tables of one train stage that say what is asked, held, watched and saved."""
    yield from _rhythms(place, options)
    locality = options.locality
    if locality is not None and not options.weight_tables:
        text = "this stage tunes no LoRA and no weights of the model, so prompts without embeddings stay as they are"
        yield Finding((*place, "locality"), f"{text}; leave it out")
    for number, prompt in enumerate(locality.prompts or () if locality else ()):
        held = [embedding.placeholder for embedding in recipe.embeddings if embedding.placeholder in prompt]
        if held:
            text = f"the other prompts are to be without new embeddings, but this one has '{held[0]}'"
            yield Finding((*place, "locality", "prompts", number), text)


def _rhythms(place: Place, options: TrainOptions) -> Iterator[Finding]:
    watch, save = options.watch, options.save
    for table, key, text in (
        ("watch", "sample_every", watch.sample_every if watch else None),
        ("save", "every", save.every if save else None),
    ):
        if text is None:
            continue
        try:
            rule = parse_stop(text, "0 is never; leave it out, or write how often")
        except ValueError as error:
            yield Finding((*place, table, key), str(error))
            continue
        if rule.unit == "never":
            yield Finding((*place, table, key), f"'never' says nothing here; leave {key} out")
        elif rule.unit == "steps" and rule.value > options.steps:
            text = f"comes after the stage's {options.steps} steps, so it never happens"
            yield Finding((*place, table, key), text, "warning")


# kind: what must have run before it when the recipe has embeddings
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
        yield from _order(("stage", index), stage, kinds[:index], kinds[index + 1 :], bool(recipe.embeddings))
    if "export" not in kinds:
        text = 'no export stage, so nothing of what is learnt would be written; put a stage with kind = "export" last'
        yield Finding(("stage",), text)


def no_embedding_findings(recipe: Recipe) -> Iterator[Finding]:
    """A recipe without embeddings has nothing to train."""
    if not recipe.embeddings:
        text = "no embedding: a run teaches embeddings, and what it tunes of the model is tuned around them; add an [[embedding]]"
        yield Finding(("stage", 0), f"{text} (with train = false the embedding is used and not trained)")


def stage_findings(recipe: Recipe, family: Family | None) -> Iterator[Finding]:
    """What is wrong with each stage."""
    for index, stage in enumerate(recipe.stages):
        place: Place = ("stage", index)
        options = stage.options
        if isinstance(options, TrainOptions):
            yield from train_findings(place, options, recipe, family)
            yield from rate_findings((*place, "learning_rate"), options.learning_rate, family)
            yield from table_findings(place, options, recipe)
            yield from objective_findings(place, options, recipe.model, family)
            yield from _band((*place, "preserve_norm"), options.preserve_norm)
        if isinstance(options, RescaleOptions):
            yield from _band((*place, "to"), options.to)
        if isinstance(options, TokenizeOptions) and not options.pad_with.strip():
            yield Finding((*place, "pad_with"), 'a blank text has no token to pad with; use "*"')


def rule_findings(recipe: Recipe, family: Family | None) -> Iterator[Finding]:
    """What is wrong with the learning rates and norms of single embeddings."""
    for index, embedding in enumerate(recipe.embeddings):
        yield from rate_findings(("embedding", index, "learning_rate"), embedding.learning_rate, family)
        yield from _band(("embedding", index, "preserve_norm"), embedding.preserve_norm)


def _order(place: Place, stage: Stage, before: list[str], after: list[str], embeddings: bool) -> Iterator[Finding]:
    kind = stage.kind
    if embeddings:
        for needed in _NEEDS.get(kind, ()):
            if needed not in before:
                way = f"move {needed} up" if needed in after else f'add a [[stage]] with kind = "{needed}"'
                yield Finding(place, f"{kind} needs {needed} before it; {way}")
    if kind == "export" and kind in before:
        yield Finding(place, "export stands here twice; one names all its targets, the files of two would collide")
    if kind == "train" and "export" in before:
        yield Finding(
            place, "train comes after export, which takes the embeddings out of the model; move export to the end"
        )
    if kind in _ONCE and kind in before:
        yield Finding(place, f"{kind} stands here twice; one is enough for all embeddings")
    if kind == "export" and "train" not in before:
        yield Finding(place, "export comes before any train stage: the embeddings it writes are untrained", "warning")
    if kind == "rescale" and "train" not in before:
        yield Finding(place, "rescale comes before any train stage: it rescales untrained embeddings", "warning")
    if kind == "rescale" and "export" in before:
        yield Finding(place, "rescale comes after export: its result is not written; move export to the end", "warning")


def rate_findings(place: Place, rates: LearningRate | None, family: Family | None) -> Iterator[Finding]:
    """Learning rates an encoder that name encoders the family has not, or leave one out."""
    if not isinstance(rates, Mapping) or family is None:
        return
    keys = list(family.widths)
    for key in rates:
        if key not in keys:
            yield Finding((*place, key), f"{family.title} has no text encoder '{key}'{did_you_mean(key, keys)}")
    if place[0] == "stage" and any(known in keys for known in rates):
        for key in [key for key in keys if key not in rates]:
            yield Finding(place, f"no number for {key}; add it, 0 to hold its vectors still")


def _band(place: Place, rule: NormRule | None) -> Iterator[Finding]:
    if isinstance(rule, Band) and rule.low > rule.high:
        yield Finding(place, f"low = {rule.low} is above high = {rule.high}")
