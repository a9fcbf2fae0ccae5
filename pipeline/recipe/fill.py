"""The defaults of the schemas, filled into what a recipe gives."""

from __future__ import annotations

import copy
from typing import Any

from ... import schemas


def filled(table: dict[str, Any], schema: dict[str, Any], origin: str = "recipe.json") -> dict[str, Any]:
    """The table with every key of its schema: given, else the default, else None.

    `origin` is the file of the schema, where its references start. A table that may also be a plain value, or one of
    several tables, is left as it is given; where the table's `kind` chooses a branch, the keys are that branch's.
    """
    result: dict[str, Any] = {}
    for key, property_ in schema["properties"].items():
        about, home = schemas.resolved(property_, origin)
        value = copy.deepcopy(table.get(key, about.get("default")))
        if isinstance(value, dict) and schemas.has_branches(about):
            branch, origin_of_branch = schemas.branch(about, value, home)
            value = filled(value, branch, origin_of_branch)
        elif isinstance(value, dict) and "properties" in about:
            value = filled(value, about, home)
        elif isinstance(value, list) and "properties" in about.get("items", {}):
            value = [filled(item, about["items"], home) for item in value]
        result[key] = value
    return result


def defaults(name: str) -> dict[str, Any]:
    """All options of one schema (`tables/objective.json`) as they are when a recipe says nothing of them."""
    return filled({}, schemas.schema(name), name)
