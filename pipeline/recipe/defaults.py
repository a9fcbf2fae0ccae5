"""Fills the defaults of the schemas into a recipe."""

from __future__ import annotations

import copy
from typing import Any

from pivotune import schemas

# The loss weightings of each kind of objective.
WEIGHTINGS = {
    "diffusion": ("none", "min-snr", "debiased"), "flow": ("none", "sigma-sqrt", "cosmap", "sigma-squared"),
    "cosine": ("none", "p2", "min-snr", "debiased"),
}  # fmt: skip


def with_defaults(table: dict[str, Any], schema: dict[str, Any], origin: str = "recipe.json") -> dict[str, Any]:
    """The table with every key of its schema: its own value, else the default, else None.

    `origin` is the schema's file, to which its references are relative. Keys that may be a table or another type are
    not filled in; if the table's `kind` selects a branch, the keys are those of the branch.
    """
    return _fill_defaults(table, _properties(schema, origin))


def _properties(schema: dict[str, Any], origin: str) -> list[tuple[str, dict[str, Any], str]]:
    """Every key of a schema with its resolved schema and the file of that."""
    return [(key, *schemas.resolved(property_, origin)) for key, property_ in schema["properties"].items()]


def _fill_defaults(table: dict[str, Any], properties: list[tuple[str, dict[str, Any], str]]) -> dict[str, Any]:
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
            if "properties" in each:  # resolved once for a long list
                inner = _properties(each, place)
                value = [_fill_defaults(item, inner) for item in value]
        result[key] = value
    return result


DENOISER = "denoiser"
NO_NF4 = "nf4 needs bitsandbytes, which is not installed; pip install 'pivotune[bitsandbytes]', or use int8"
NO_GGUF = "a .gguf file needs gguf, which is not installed; pip install 'pivotune[gguf]'"
QUANTIZED = ("nf4", "int8", "float8")  # number formats of packed linear layers
TABLES = ("lora", "finetune")
FROM_BASE = {"rank", "alpha", "targets"}  # keys of a LoRA that a base file answers


def fill_trained(stage: dict[str, Any]) -> None:
    """Complete the table of a train stage in place: `lora` and `finetune` become lists of full tables, or stay None.

    Defaults that are values of another key: alpha is the rank, schedule and warmup are the stage's, and the weight
    decay of an optimizer is that of its table. With a base file, rank, alpha and targets have no default.
    """
    for name in TABLES:
        value = stage[name]
        if value is not None:
            tables = [value] if isinstance(value, dict) else value
            file = f"tables/{name}.json"
            full = [with_defaults(table, schemas.schema(file), file) for table in tables]
            for given, table in zip(tables, full, strict=True):
                table |= dict.fromkeys(FROM_BASE - given.keys()) if given.get("base") is not None else {}
            stage[name] = [_inherit(table, stage) for table in full]


def _inherit(table: dict[str, Any], stage: dict[str, Any]) -> dict[str, Any]:
    if table.get("alpha", 0) is None and table["base"] is None:
        table["alpha"] = float(table["rank"])
    for key in ("schedule", "warmup_steps"):
        if table[key] is None:
            table[key] = stage[key]
    if table["optimizer"]["weight_decay"] is None:
        table["optimizer"]["weight_decay"] = table["weight_decay"]
    return table
