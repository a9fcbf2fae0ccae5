"""Whether a recipe fits into the memory of a GPU, and the settings that make it fit, the cheapest ones first."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..recipe.defaults import DENOISER
from ..recipe.model import Recipe, Stage
from ..recipe.options import TrainOptions
from ..text import format_bytes
from .gpu_memory import Sizes, gpu_memory, sizes_of
from .model import offload_findings, weight_findings

GIB = 2**30
USABLE = 0.96  # share of a GPU's memory: the allocator leaves gaps between tensors
LARGE = 1e9  # bytes in 16 bit: packing or offloading a smaller text encoder gains little
Setting = tuple[str, str, Any]  # `model`, `weights`, `offload` or `train`; the key in it; its value
Changes = dict[tuple[str | int, ...], str]  # the path of a key in the document, and its value as TOML


@dataclass(frozen=True)
class Fit:
    """The answer for one recipe and GPU. Rows are bytes by part, of the train stage that needs most.

    `model` says whose sizes these are. `stages` has the bytes of every train stage by its index, as the recipe is, and
    `made_stages` those of `made`: the recipe with `settings`, all that were tried if even these do not suffice. `tried`
    has the rows after each further setting.
    """

    recipe: Recipe
    limit: int
    stages: dict[int, int]
    rows: dict[str, int]
    tried: tuple[tuple[Setting, dict[str, int]], ...]
    settings: tuple[Setting, ...]
    made: Recipe
    made_stages: dict[int, int]
    made_rows: dict[str, int]
    model: str

    @property
    def fits(self) -> bool:
        """Whether `made` fits."""
        return max(self.made_stages.values()) <= self.limit * USABLE


def fit(recipe: Recipe, gib: float) -> Fit | None:
    """Whether a recipe fits into a GPU of `gib` GiB; None for one without a train stage.

    Settings are added from the cheapest on, until it fits; then those that are not needed are left out, the most
    expensive first. StageError when the model's family is unknown.
    """
    if not recipe.stages_with(TrainOptions):
        return None
    sizes, limit = sizes_of(recipe), round(gib * GIB)
    usable = limit * USABLE
    stages, rows = largest(recipe, sizes)
    chosen: list[Setting] = []
    tried = []
    made, made_stages, made_rows = recipe, stages, rows
    for setting in possible_settings(recipe, sizes):
        if sum(made_rows.values()) <= usable:
            break
        chosen.append(setting)
        made = with_settings(recipe, chosen)
        made_stages, made_rows = largest(made, sizes)
        tried.append((setting, made_rows))
    if sum(made_rows.values()) <= usable:
        for setting in reversed(list(chosen)):
            fewer = [one for one in chosen if one is not setting]
            found = largest(with_settings(recipe, fewer), sizes)
            if sum(found[1].values()) <= usable:
                chosen, (made_stages, made_rows) = fewer, found
        made = with_settings(recipe, chosen)
    model = f"the usual model of {sizes.family.title}" if sizes.well_known else recipe.model.base
    return Fit(recipe, limit, stages, rows, tuple(tried), tuple(chosen), made, made_stages, made_rows, model)


def largest(recipe: Recipe, sizes: Sizes) -> tuple[dict[int, int], dict[str, int]]:
    """Bytes of every train stage, and by part those of the one that needs most."""
    stages = {one.stage: gpu_memory(recipe, sizes, one) for one in sizes.needs.stages}
    return (
        {index: sum(rows.values()) for index, rows in stages.items()},
        max(stages.values(), key=lambda rows: sum(rows.values())),
    )


def possible_settings(recipe: Recipe, sizes: Sizes) -> Iterator[Setting]:
    """Settings that the recipe does not have yet and that its checks allow, in order of their cost."""
    findings = _findings(recipe)
    for setting in _in_order(recipe, sizes):
        made = with_settings(recipe, [setting])
        if made != recipe and _findings(made) <= findings:
            yield setting


def _in_order(recipe: Recipe, sizes: Sizes) -> Iterator[Setting]:
    spec = recipe.model
    encoders = sorted(
        (one for one in sizes.parts if one.key in sizes.layers and 2 * one.size.values > LARGE),
        key=lambda one: -one.size.values,
    )
    if spec.dtype == "float32":
        yield "model", "dtype", "bfloat16"
    yield "train", "batch_size", 1
    yield "train", "gradient_checkpointing", True
    yield from (("weights", one.key, "int8") for one in encoders if one.key not in spec.weights)
    if DENOISER not in spec.weights:
        yield "weights", DENOISER, "int8"
    yield from (("weights", one.key, "nf4") for one in encoders)
    yield "weights", DENOISER, "nf4"
    yield from (("offload", one.key, 1) for one in encoders if one.blocks)
    if any(one.blocks for one in sizes.parts if one.key == DENOISER):
        yield from (("offload", DENOISER, share) for share in (0.5, 1) if share > spec.offload.get(DENOISER, 0))


def _findings(recipe: Recipe) -> set[str]:
    """What the checks of a recipe say of packed and offloaded parts, but not of the package that nf4 needs."""
    kinds = {part: "int8" if kind == "nf4" else kind for part, kind in recipe.model.weights.items()}
    checked = replace(recipe, model=replace(recipe.model, weights=kinds))
    return {finding.text for findings in (weight_findings, offload_findings) for finding in findings(checked, None)}


def with_settings(recipe: Recipe, settings: Sequence[Setting]) -> Recipe:
    """The recipe with settings; a later one replaces an earlier one of the same key."""
    for table, key, value in settings:
        if table == "train":
            recipe = replace(recipe, stages=tuple(_train(one, key, value) for one in recipe.stages))
            continue
        spec = recipe.model
        changes: dict[str, Any] = {key: value} if table == "model" else {table: {**getattr(spec, table), key: value}}
        recipe = replace(recipe, model=replace(spec, **changes))
    return recipe


def _train(stage: Stage, key: str, value: Any) -> Stage:
    """A train stage with a setting; fewer images a batch are accumulated to as many a step."""
    options = stage.options
    if not isinstance(options, TrainOptions) or getattr(options, key) == value:
        return stage
    changes = {key: value}
    if key == "batch_size":
        changes["gradient_accumulation"] = options.gradient_accumulation * options.batch_size // value
    return replace(stage, options=replace(options, **changes))


def changed_keys(before: Recipe, after: Recipe) -> Changes:
    """The keys whose values differ, by their path in the document: `("model", "dtype")`, `("stage", 2, "steps")`."""
    changes: Changes = {}
    for key in ("dtype", "weights", "offload"):
        value = getattr(after.model, key)
        if value != getattr(before.model, key):
            changes["model", key] = _toml(value)
    for index, options in after.stages_with(TrainOptions):
        for name in ("batch_size", "gradient_accumulation", "gradient_checkpointing"):
            if getattr(options, name) != getattr(before.stages[index].options, name):
                changes["stage", index, name] = _toml(getattr(options, name))
    return changes


def _toml(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"{{ {', '.join(f'{key} = {_toml(one)}' for key, one in value.items())} }}"
    return f"{value:g}" if isinstance(value, float) else json.dumps(value)


def fit_lines(found: Fit) -> Iterator[str]:
    """The answer as text: each train stage, the estimate by part, what each setting gains, and the lines to paste."""
    limit = f"{found.limit / GIB:g} GB"
    yield f"GPU memory of {found.recipe.name}, estimated from the sizes of {found.model}; not measured"
    for index, needed in found.stages.items():
        answer = "fits into" if needed <= found.limit * USABLE else "does not fit into"
        yield f"  stage {index + 1} (train): {format_bytes(needed)}, {answer} {limit}"
    yield f"  {_parts(found.rows)}"
    for (table, key, value), rows in found.tried:
        name = f"{table}.{key}" if table in ("model", "train") else f"model.{table}.{key}"
        yield f"with {name} = {_toml(value)}: {format_bytes(sum(rows.values()))}"
        yield f"  {_parts(rows)}"
    total = format_bytes(max(found.made_stages.values()))
    if not found.fits:
        yield f"It does not fit into {limit} even with all of these ({total}); reduce train.resolution or samples.size"
    elif found.settings:
        yield f"It fits into {limit} with these keys ({total}):"
        yield from (f"  {line}" for line in toml_lines(changed_keys(found.recipe, found.made)))
        if any(value == "nf4" for _, _, value in found.settings):
            yield "nf4 needs bitsandbytes: pip install 'pivotune[bitsandbytes]'"


def _parts(rows: Mapping[str, int]) -> str:
    return f"{', '.join(f'{name} {count / GIB:.1f}' for name, count in rows.items())} GiB"


def toml_lines(changes: Changes) -> Iterator[str]:
    """Changes as lines of a recipe, below the headers of their tables."""
    yield from ["[model]"] * any(path[0] == "model" for path in changes)
    yield from (f"{path[-1]} = {value}" for path, value in changes.items() if path[0] == "model")
    for index in dict.fromkeys(path[1] for path in changes if path[0] == "stage"):
        yield f"[[stage]]  # stage {int(index) + 1}, train"
        yield from (f"{path[-1]} = {value}" for path, value in changes.items() if path[:2] == ("stage", index))


def fit_json(found: Fit) -> dict[str, Any]:
    """The answer for programs; sizes in bytes."""
    return {
        "limit": found.limit, "fits": found.fits, "model": found.model,
        "stages": {str(index + 1): total for index, total in found.stages.items()}, "parts": found.rows,
        "settings": [{"table": table, "key": key, "value": value} for table, key, value in found.settings],
        "stages_with_settings": {str(index + 1): total for index, total in found.made_stages.items()},
        "parts_with_settings": found.made_rows,
        "toml": list(toml_lines(changed_keys(found.recipe, found.made))),
    }  # fmt: skip
