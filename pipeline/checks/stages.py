"""Checks of stages: their order, and options that cannot be combined."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from ...converters.families import Family
from ..models.family import boundary_of, scheduler_config
from ..recipe.defaults import DENOISER, WEIGHTINGS
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
from ..recipe.problem import Finding, KeyPath
from ..text import count_of, did_you_mean

NAMES = {
    "diffusion": "a diffusion model", "flow": "a flow matching model", "cosine": "a model whose time is a ratio"
}  # fmt: skip
RATIO_STEPS = 1000  # thousandths of a ratio


def objective_findings(
    key_path: KeyPath, options: TrainOptions, spec: ModelSpec, family: Family | None
) -> Iterator[Finding]:
    """Keys of `objective` and `timesteps` that do not apply to this model or cannot train."""
    config = scheduler_config(spec)
    kind = _kind(config, family)
    count = RATIO_STEPS if kind == "cosine" else config.get("num_train_timesteps")
    yield from _timestep_findings(key_path, options.timesteps, count)
    boundary = round(boundary_of(spec) * (count or 0))
    if options.timesteps.low < boundary and options.weight_tables:
        text = f"the model's second denoiser draws below timestep {boundary}, and the LoRA or fine-tune is of the first"
        yield Finding(
            (*key_path, "timesteps", "low"), f"{text}: steps below do not train it; set {boundary}", "warning"
        )
    if kind is None:
        yield from _zero_snr_findings(key_path, options.objective, None)
        return
    objective, where = options.objective, (*key_path, "objective")
    if objective.weighting not in WEIGHTINGS[kind]:
        text = f"{objective.weighting} is not supported for {NAMES[kind]}; use {', '.join(WEIGHTINGS[kind])}"
        yield Finding((*where, "weighting"), text)
    if kind != "flow" and options.timesteps.shift == "dynamic":
        text = f"'dynamic' is not supported for {NAMES[kind]}; use a number"
        yield Finding((*key_path, "timesteps", "shift"), text)
    if kind == "diffusion":
        yield from _zero_snr_findings(key_path, objective, config.get("prediction_type"))
        return
    for key in ("prediction", "zero_terminal_snr"):
        if getattr(objective, key):
            yield Finding((*where, key), f"{key} does not apply to {NAMES[kind]}; remove it")
    if kind == "flow" and objective.loss in ("huber", "smooth_l1") and objective.huber.schedule == "snr":
        text = f'huber.schedule = "snr" (the default) is not supported for {NAMES[kind]}; use constant or exponential'
        yield Finding((*where, "huber"), text)


def _kind(config: Mapping[str, Any], family: Family | None) -> str | None:
    """The kind of objective, as training chooses it: by the model's scheduler, else its family; None if unknown."""
    if str(config.get("_class_name", "")).startswith("FlowMatch"):
        return "flow"
    if family is not None:
        return family.objective
    return "diffusion" if "_class_name" in config else None


def _zero_snr_findings(key_path: KeyPath, objective: ObjectiveOptions, model: str | None) -> Iterator[Finding]:
    """Noise prediction with zero terminal SNR; `model` is the prediction type of the model's scheduler, if known."""
    if objective.zero_terminal_snr and (objective.prediction or model) == "epsilon":
        text = 'zero_terminal_snr cannot be trained with noise prediction; set prediction = "v_prediction"'
        yield Finding((*key_path, "objective"), f"{text} and use a model that was trained with it")


def _timestep_findings(key_path: KeyPath, times: TimestepOptions, count: int | None) -> Iterator[Finding]:
    high = times.high or count
    if high is not None and times.low >= high:
        end = f"high = {high}" if times.high else f"the model's {count} timesteps"
        yield Finding((*key_path, "timesteps"), f"low = {times.low} leaves no timestep below {end}")
    if count is not None and (times.high or 0) > count:
        yield Finding((*key_path, "timesteps"), f"high = {times.high}, but the model has {count} timesteps")


def train_findings(
    key_path: KeyPath, options: TrainOptions, recipe: Recipe, family: Family | None
) -> Iterator[Finding]:
    """Checks of one train stage."""
    trainable = [embedding for embedding in recipe.embeddings if embedding.train]
    if not options.weight_tables:
        if not options.embeddings:
            yield Finding(
                key_path,
                "nothing to train: embeddings = false, no lora and no finetune; add for example lora = { rank = 16 }",
            )
        elif recipe.embeddings and not trainable:  # without embeddings: see no_embedding_findings
            text = "nothing to train: every [[embedding]] has train = false, and this stage has no lora or finetune"
            yield Finding(key_path, text)
    elif options.embeddings and recipe.embeddings and not trainable:
        text = "embeddings = true has no effect: every [[embedding]] has train = false"
        yield Finding((*key_path, "embeddings"), text, "warning")
    if options.caption_dropout == 1 and trainable and options.embeddings:
        yield Finding(
            (*key_path, "caption_dropout"), "1 empties every caption, so no embedding is trained; use a smaller share"
        )
    yield from _parts(key_path, options, family)
    yield from _optimizer_findings(key_path, options, options.steps)


def _parts(key_path: KeyPath, options: TrainOptions, family: Family | None) -> Iterator[Finding]:
    seen: dict[str, str] = {}
    for name, number, table in options.weight_tables:
        where: KeyPath = (*key_path, name, number)
        for part in table.parts:
            known = [DENOISER, *(family.widths if family else ())]
            if family is not None and part not in known:
                yield Finding(where, f"{family.title} has no part '{part}'{did_you_mean(part, known)}")
            if part in seen:
                yield Finding(where, f"{part} is in {seen[part]} and in {name}; only one can train it")
            seen[part] = name
        same = table.warmup_steps == options.warmup_steps
        yield from _optimizer_findings(where, replace(table, warmup_steps=0) if same else table, options.steps)


def _optimizer_findings(key_path: KeyPath, table: TrainOptions | WeightOptions, steps: int) -> Iterator[Finding]:
    """Optimizer, learning rate and warmup of the embeddings or of one table."""
    kind, warmup, rate = table.optimizer.kind, table.warmup_steps, table.learning_rate
    row = table.optimizer.facts
    if row.missing is not None:
        yield Finding((*key_path, "optimizer"), f"{kind} needs {row.package}, which is not installed: {row.missing}")
    highest = max(rate.values()) if isinstance(rate, Mapping) else rate
    if row.adaptive and highest < 0.1:
        text = f"{kind} finds the learning rate itself and multiplies it by this value: {highest:g} is far below 1"
        yield Finding((*key_path, "learning_rate"), text, "warning")
    if (table.schedule.kind == "piecewise") != bool(table.schedule.pieces):
        text = "piecewise needs pieces = [[from, factor], ...], and pieces need piecewise"
        yield Finding((*key_path, "schedule"), text)
    if warmup >= 1 and warmup != int(warmup):
        yield Finding((*key_path, "warmup_steps"), f"{warmup:g} is neither a whole number of steps nor a share below 1")
    elif 0 < steps <= warmup:  # 0: epochs whose images cannot be counted
        text = f"the warmup takes all of the {count_of(steps, 'step')}; make it shorter"
        yield Finding((*key_path, "warmup_steps"), text, "warning")


def table_findings(key_path: KeyPath, options: TrainOptions, recipe: Recipe) -> Iterator[Finding]:
    """Checks of the locality, watch and save tables of one train stage, and of a masked prior without a LoRA."""
    yield from _interval_findings(key_path, options)
    if options.objective.masked_prior_weight and not options.trained_loras:
        text = "masked_prior_weight has no effect: this stage trains no LoRA; remove it"
        yield Finding((*key_path, "objective", "masked_prior_weight"), text)
    locality = options.locality
    if locality is not None and not options.weight_tables:
        text = "locality has no effect: this stage trains no LoRA and no weights of the model"
        yield Finding((*key_path, "locality"), f"{text}; remove it")
    if locality is not None and recipe.model.prompt_chunks > 1:
        text = "not supported with model.prompt_chunks > 1: its prompts may have fewer chunks than the captions"
        yield Finding((*key_path, "locality"), f"{text}; remove one of them")
    for number, prompt in enumerate(locality.prompts or () if locality else ()):
        found = [embedding.placeholder for embedding in recipe.embeddings if embedding.placeholder in prompt]
        if found:
            text = f"locality prompts must not contain embeddings; remove '{found[0]}'"
            yield Finding((*key_path, "locality", "prompts", number), text)


def _interval_findings(key_path: KeyPath, options: TrainOptions) -> Iterator[Finding]:
    watch, save = options.watch, options.save
    for table, key, every in (
        ("watch", "sample_every", watch.sample_every if watch else None),
        ("save", "every", save.every if save else None),
    ):
        if every is not None and every.unit == "never":
            yield Finding((*key_path, table, key), f"'never' has no effect; remove {key}")
        if every is not None and every.unit == "steps" and 0 < options.steps < every.value:
            text = f"longer than the stage's {count_of(options.steps, 'step')}, so it never happens"
            yield Finding((*key_path, table, key), text, "warning")


def order_findings(recipe: Recipe) -> Iterator[Finding]:
    """Stages that are missing, duplicate, or before a stage that they need."""
    kinds = [stage.kind for stage in recipe.stages]
    for index, stage in enumerate(recipe.stages):
        yield from _order(("stage", index), stage, kinds[:index], kinds[index + 1 :], bool(recipe.embeddings))
    if "export" not in kinds:
        text = 'no export stage, so no files would be written; add a [[stage]] with kind = "export" at the end'
        yield Finding(("stage",), text)


def no_embedding_findings(recipe: Recipe) -> Iterator[Finding]:
    """An error for a recipe without embeddings."""
    if not recipe.embeddings:
        text = "no embeddings in the recipe; add an [[embedding]] (train = false keeps it frozen)"
        yield Finding(("stage", 0), text)


def stage_findings(recipe: Recipe, family: Family | None) -> Iterator[Finding]:
    """Checks of every stage by itself."""
    for index, stage in enumerate(recipe.stages):
        key_path: KeyPath = ("stage", index)
        options = stage.options
        if isinstance(options, TrainOptions):
            yield from train_findings(key_path, options, recipe, family)
            yield from rate_findings((*key_path, "learning_rate"), options.learning_rate, family)
            yield from table_findings(key_path, options, recipe)
            yield from objective_findings(key_path, options, recipe.model, family)
            yield from _band((*key_path, "preserve_norm"), options.preserve_norm)
        if isinstance(options, RescaleOptions):
            yield from _band((*key_path, "to"), options.to)
        if isinstance(options, TokenizeOptions) and not options.pad_with.strip():
            yield Finding((*key_path, "pad_with"), 'blank text has no token to pad with; use "*"')


def rule_findings(recipe: Recipe, family: Family | None) -> Iterator[Finding]:
    """Checks of the learning rates and norms of single embeddings."""
    for index, embedding in enumerate(recipe.embeddings):
        yield from rate_findings(("embedding", index, "learning_rate"), embedding.learning_rate, family)
        yield from _band(("embedding", index, "preserve_norm"), embedding.preserve_norm)


def _order(key_path: KeyPath, stage: Stage, before: list[str], after: list[str], embeddings: bool) -> Iterator[Finding]:
    kind = stage.kind
    for needed in stage.options.AFTER if embeddings else ():
        if needed not in before:
            fix = f"move {needed} up" if needed in after else f'add a [[stage]] with kind = "{needed}"'
            yield Finding(key_path, f"{kind} needs {needed} before it; {fix}")
    if stage.options.ONCE and kind in before:
        more = "; list all targets in one" if kind == "export" else ""
        yield Finding(key_path, f"duplicate {kind} stage; a recipe has at most one{more}")
    if kind == "train" and "export" in before:
        yield Finding(key_path, "train is after export, which removes the embeddings; move export to the end")
    if kind in ("export", "rescale") and "train" not in before:
        yield Finding(key_path, f"{kind} is before every train stage, so its embeddings are untrained", "warning")
    if kind == "rescale" and "export" in before:
        yield Finding(
            key_path, "rescale is after export, so its result is not written; move export to the end", "warning"
        )


def rate_findings(key_path: KeyPath, rates: LearningRate | None, family: Family | None) -> Iterator[Finding]:
    """Learning rates per text encoder: unknown or missing encoders."""
    if not isinstance(rates, Mapping) or family is None:
        return
    keys = list(family.widths)
    for key in rates:
        if key not in keys:
            yield Finding((*key_path, key), f"{family.title} has no text encoder '{key}'{did_you_mean(key, keys)}")
    if key_path[0] == "stage" and any(known in keys for known in rates):
        for key in [key for key in keys if key not in rates]:
            yield Finding(key_path, f"no learning rate for {key}; add it (0 freezes its vectors)")


def _band(key_path: KeyPath, rule: NormRule | None) -> Iterator[Finding]:
    if isinstance(rule, Band) and rule.low > rule.high:
        yield Finding(key_path, f"low = {rule.low} is greater than high = {rule.high}")
