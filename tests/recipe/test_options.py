"""Typed options have the keys of their schemas, and come back from JSON."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from typing import Any, get_args, get_type_hints

import pytest

from pivotune import schemas
from pivotune.pipeline.recipe import options as module
from pivotune.pipeline.recipe.load import recipe_as_json, recipe_from_json, stage
from pivotune.pipeline.recipe.options import (
    STAGE_OPTIONS,
    Band,
    OptimizerOptions,
    RescaleOptions,
    ScheduleOptions,
    TrainOptions,
)
from pivotune.pipeline.recipe.typed import as_table, options_of

CLASSES = [one for one in vars(module).values() if isinstance(one, type) and hasattr(one, "SCHEMA")]
KINDS = schemas.schema("tables/optimizer.json")["properties"]["kind"]["enum"]


def without_kind(keys: Any, kind: type) -> list[str]:
    """The keys of a stage's table but the one that chooses the stage."""
    return [key for key in keys if key != "kind" or kind not in STAGE_OPTIONS.values()]


@pytest.mark.parametrize(
    "kind", [one for one in CLASSES if one is not OptimizerOptions], ids=lambda kind: kind.__name__
)
def test_fields_are_the_keys_of_the_schema_in_its_order(kind: Any) -> None:
    keys = schemas.schema(kind.SCHEMA)["properties"]
    types = get_type_hints(kind)
    assert [one.name.rstrip("_") for one in fields(kind)] == without_kind(keys, kind)
    for name, about in keys.items():
        if "properties" in about:  # a table within the table
            inner = next(one for one in (types[name], *get_args(types[name])) if is_dataclass(one))
            assert [one.name for one in fields(inner)] == list(about["properties"]), name


@pytest.mark.parametrize("kind", KINDS)
def test_optimizers_have_the_keys_of_their_kind(kind: str) -> None:
    table = as_table(options_of(OptimizerOptions, kind=kind))
    about, _ = schemas.branch(schemas.schema("tables/optimizer.json"), {"kind": kind}, "tables/optimizer.json")
    assert list(table) == list(about["properties"])


def test_every_schema_of_options_has_a_class() -> None:
    described = {"tables/concept.json", "tables/embedding.json"}  # `Concept` and `EmbeddingSpec`
    names = {name for name in schemas.names() if name.startswith(("stages/", "tables/"))}
    assert names - described == {one.SCHEMA for one in CLASSES}


def test_tables_become_their_classes_and_lists_tuples() -> None:
    made = options_of(
        TrainOptions, steps=5, lora={"rank": 2, "schedule": {"kind": "cosine", "end": 0.5}}, schedule="linear",
        preserve_norm={"low": 1, "high": 2}, learning_rate={"clip_l": 1e-3},
    )  # fmt: skip
    assert made.lora[0].schedule == options_of(ScheduleOptions, kind="cosine", end=0.5)
    assert made.lora[0].parts == ("denoiser",)
    assert made.finetune == ()
    assert (made.preserve_norm, made.learning_rate) == (Band(1, 2), {"clip_l": 1e-3})
    assert made.lora[0].optimizer.weight_decay == made.lora[0].weight_decay == 0.01
    assert made.optimizer.weight_decay == 0.0


TABLES = [
    {"kind": "train", "steps": 5},
    {"kind": "train", "steps": 5, "lora": {"rank": 2}, "finetune": [{"parts": ["clip_l"], "layers": ["attn"]}]},
    {"kind": "train", "steps": 5, "optimizer": {"kind": "prodigy", "weight_decay": 0.5}},
    {
        "kind": "train",
        "steps": 5,
        "schedule": {"kind": "piecewise", "pieces": [[0.5, 0.1]]},
        "watch": {},
        "locality": {},
    },
    {"kind": "train", "steps": 5, "schedule": {"kind": "polynomial", "power": 2.0}, "save": {"every": "2 steps"}},
    {"kind": "rescale", "to": {"low": 0.5, "high": 1}},
    {"kind": "rescale", "to": 0.3},
    {"kind": "inject", "encoders": ["clip_g"]},
    {"kind": "tokenize"},
    {"kind": "export", "model": [], "from": "best"},
    {"kind": "train", "steps": 5, "stop_when": {"validation": "no better for 3"}},
]


@pytest.mark.parametrize("table", TABLES, ids=str)
def test_options_come_back_from_their_table(table: dict[str, Any]) -> None:
    made = stage(table)
    again = {key: value for key, value in as_table(made.options).items() if value is not None}
    assert stage({"kind": made.kind, **again}) == made


def test_a_table_is_what_the_recipe_wrote_with_the_defaults() -> None:
    assert as_table(options_of(RescaleOptions)) == {"to": "median"}
    table = as_table(options_of(TrainOptions, steps=5, schedule={"kind": "restarts", "cycles": 3}))
    assert table["schedule"] == {"kind": "restarts", "cycles": 3}
    assert table["objective"]["huber"] == {"threshold": 0.1, "schedule": "snr", "scale": 1.0}
    assert (table["lora"], table["watch"]) == (None, None)
    assert list(table) == without_kind(schemas.schema("stages/train.json")["properties"], TrainOptions)


def test_class_images_come_back(good: Any) -> None:
    from pivotune.pipeline.recipe.load import load_recipe

    recipe = load_recipe(good, ["concept.generate={ prompts = ['a photo'] }"])
    assert recipe.concepts[0].generate.prompts == ("a photo",)
    assert recipe_from_json(recipe_as_json(recipe), recipe.path) == recipe
