"""The defaults of the schemas, filled into what a recipe gives."""

from __future__ import annotations

import copy
from typing import Any

from pivotune import schemas

# The weightings of the loss that each kind of objective has.
WEIGHTINGS = {
    "diffusion": ("none", "min-snr", "debiased"), "flow": ("none", "sigma-sqrt", "cosmap", "sigma-squared")
}  # fmt: skip


def with_defaults(table: dict[str, Any], schema: dict[str, Any], origin: str = "recipe.json") -> dict[str, Any]:
    """The table with every key of its schema: given, else the default, else None.

    `origin` is the file of the schema, where its references start. A table that may also be a plain value, or one of
    several tables, is left as it is given; where the table's `kind` chooses a branch, the keys are that branch's.
    """
    return _filled(table, _properties(schema, origin))


def _properties(schema: dict[str, Any], origin: str) -> list[tuple[str, dict[str, Any], str]]:
    """Every key of a schema with what is said of it, and the file that says so."""
    return [(key, *schemas.resolved(property_, origin)) for key, property_ in schema["properties"].items()]


def _filled(table: dict[str, Any], properties: list[tuple[str, dict[str, Any], str]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, about, home in properties:
        value = table.get(key, about.get("default"))
        value = copy.deepcopy(value) if isinstance(value, (dict, list)) else value
        if isinstance(value, dict) and schemas.has_branches(about):
            branch, origin_of_branch = schemas.branch(about, value, home)
            value = with_defaults(value, branch, origin_of_branch)
        elif isinstance(value, dict) and "properties" in about:
            value = with_defaults(value, about, home)
        elif value and isinstance(value, list) and "items" in about:
            each, place = schemas.resolved(about["items"], home)
            if "properties" in each:  # looked up once for all of a long list
                inner = _properties(each, place)
                value = [_filled(item, inner) for item in value]
        result[key] = value
    return result


def defaults(name: str) -> dict[str, Any]:
    """All options of one schema (`tables/objective.json`) as they are when a recipe says nothing of them."""
    return with_defaults({}, schemas.schema(name), name)


DENOISER = "denoiser"
TABLES = ("lora", "finetune")


def fill_trained(options: dict[str, Any]) -> None:
    """Complete a train stage's options in place: `lora` and `finetune` become lists of whole tables, or stay None.

    A LoRA's alpha is its rank, a schedule or warm-up that is left out the stage's, and so is the decay of an optimizer.
    """
    _decay(options["optimizer"], 0.0)
    for name in TABLES:
        given = options[name]
        if given is not None:
            tables = [given] if isinstance(given, dict) else given
            file = f"tables/{name}.json"
            options[name] = [_whole(with_defaults(table, schemas.schema(file), file), options) for table in tables]


def trained_parts(options: dict[str, Any], name: str) -> list[str]:
    """The parts that the stage's `lora` or `finetune` tables name, in their order."""
    return [part for table in options[name] or () for part in table["parts"]]


def _whole(table: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    if table.get("alpha", 0) is None:
        table["alpha"] = float(table["rank"])
    for key in ("schedule", "warmup_steps"):
        if table[key] is None:
            table[key] = options[key]
    _decay(table["optimizer"], table["weight_decay"])
    return table


def _decay(optimizer: dict[str, Any], default: float) -> None:
    if optimizer["weight_decay"] is None:
        optimizer["weight_decay"] = default
