"""The JSON Schemas, and the one function that applies them. `jsonschema` is imported when a document is checked."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jsonschema.exceptions import ValidationError


@cache
def names() -> tuple[str, ...]:
    """Every schema that ships, as its path below this folder: `recipe.json`, `stages/train.json`, ..."""
    here = files(__name__)
    top = [entry.name for entry in here.iterdir() if entry.name.endswith(".json")]
    stages = [f"stages/{entry.name}" for entry in (here / "stages").iterdir() if entry.name.endswith(".json")]
    return tuple(sorted(top) + sorted(stages))


@cache
def schema(name: str) -> dict[str, Any]:
    """One schema, read once; callers must not change it."""
    return json.loads(files(__name__).joinpath(*name.split("/")).read_text("utf-8"))


def violations(document: object, name: str = "recipe.json") -> Iterator[ValidationError]:
    """Every place where the document breaks the schema. References between the files are resolved offline.

    Unlike plain JSON Schema a whole number must be written as one: 10.0 is no integer.
    """
    from jsonschema.validators import extend, validator_for
    from referencing import Registry, Resource

    registry: Registry[Any] = Registry().with_resources(
        (other, Resource.from_contents(schema(other))) for other in names() if schema(other).get("$schema")
    )
    plain = validator_for(schema(name))
    types = plain.TYPE_CHECKER.redefine("integer", lambda _, value: type(value) is int)
    strict = extend(plain, type_checker=types)
    yield from strict({"$ref": name}, registry=registry).iter_errors(document)
