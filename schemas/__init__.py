"""The JSON Schemas, and the one function that applies them. `jsonschema` is imported when a document is checked."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin

if TYPE_CHECKING:
    from jsonschema.exceptions import ValidationError


@cache
def names() -> tuple[str, ...]:
    """Every schema that ships, as its path below this folder: `recipe.json`, `stages/train.json`, ...

    `tables/` has the tables that stages refer to. `editor.json`, which is generated (see `bundled`), is not included.
    """
    here = files(__name__)
    top = [entry.name for entry in here.iterdir() if entry.name.endswith(".json") and entry.name != "editor.json"]
    below = [
        f"{folder}/{entry.name}"
        for folder in ("stages", "tables")
        for entry in sorted((here / folder).iterdir(), key=lambda entry: entry.name)
        if entry.name.endswith(".json")
    ]
    return tuple(sorted(top) + below)


@cache
def schema(name: str) -> dict[str, Any]:
    """One schema, read once; callers must not change it. That of recipes gets a branch for each file of `stages/`."""
    loaded: dict[str, Any] = json.loads(files(__name__).joinpath(*name.split("/")).read_text("utf-8"))
    if name == "recipe.json":
        kinds = [file[len("stages/") : -len(".json")] for file in names() if file.startswith("stages/")]
        stage = loaded["properties"]["stage"]["items"]
        stage["properties"]["kind"]["enum"] = kinds
        stage["allOf"] = [_stage_branch(kind) for kind in kinds]
    return loaded


def _stage_branch(kind: str) -> dict[str, Any]:
    chosen = {"required": ["kind"], "properties": {"kind": {"const": kind}}}
    return {"if": chosen, "then": {"$ref": f"stages/{kind}.json"}}


def violations(document: object, name: str = "recipe.json") -> Iterator[ValidationError]:
    """All violations of a schema. References between the files are resolved offline.

    Stricter than JSON Schema: 10.0 is not an integer.
    """
    yield from _validator(name).iter_errors(document)


@cache
def _validator(name: str) -> Any:
    """The validator of one schema, created once: a table may have ten thousand rows."""
    from jsonschema.validators import extend, validator_for
    from referencing import Registry
    from referencing.jsonschema import specification_with

    dialect = schema(name)["$schema"]
    create = specification_with(dialect).create_resource
    registry: Registry[Any] = Registry().with_resources((other, create(_undated(other))) for other in names())
    known = validator_for({"$schema": dialect})
    types = known.TYPE_CHECKER.redefine("integer", lambda _, value: type(value) is int)
    strict = extend(known, {"pattern": _pattern}, type_checker=types)
    return strict({"$ref": name}, registry=registry)


def _undated(name: str) -> dict[str, Any]:
    """A schema without `$schema`: with it, jsonschema would use its own definition of an integer."""
    return {key: value for key, value in schema(name).items() if key != "$schema"}


def _pattern(_: object, pattern: str, text: object, __: object) -> Iterator[ValidationError]:
    """JSON Schema's `$` is the end of the text; Python's also matches before a final line break."""
    from jsonschema.exceptions import ValidationError

    if isinstance(text, str) and re.search(re.sub(r"\$$", r"\\Z", pattern), text) is None:
        yield ValidationError(f"{text!r} does not match {pattern!r}")


@cache
def inner_tables() -> dict[str, str]:
    """Every table that is defined inside another schema, and the file of that: `checkpoint`, `model`, ..."""
    return {
        key: name
        for name in names()
        if name != "manifest.json"
        for key, about in schema(name).get("properties", {}).items()
        if "properties" in about.get("items", about)
    }


def bundled(name: str = "recipe.json", table: str | None = None) -> dict[str, Any]:
    """The schema with all references resolved, for editors; `editor.json` is that of recipes.

    With `table`: the schema of one inner table (see `inner_tables`), or of the items of a list.

    Some TOML editors cannot follow references between files, and some complete only the alternatives of `oneOf`:
    if/then branches are repeated as `oneOf`, which allows the same documents.
    """
    definitions: dict[str, Any] = {}
    about = schema(name)
    if table is not None:
        one = about["properties"][table]
        about = {"$schema": schema("recipe.json")["$schema"], "title": table, **one.get("items", one)}
    expanded = _inlined(about, name, definitions)
    return {**expanded, "definitions": dict(sorted(definitions.items()))}


def resolved(about: dict[str, Any], origin: str) -> tuple[dict[str, Any], str]:
    """A property's schema with its reference merged in (its own keys take precedence), and the file of the target.

    A reference is `$ref`, or `allOf = [{ $ref }]` with its own description and default.
    """
    parts = about.get("allOf") or [about]
    if len(parts) != 1 or "$ref" not in parts[0]:
        return about, origin
    file, target = _target(parts[0]["$ref"], origin)
    merged, home = resolved(target, file)
    return {**merged, **{key: value for key, value in about.items() if key not in ("$ref", "allOf")}}, home


def has_branches(about: dict[str, Any]) -> bool:
    """Whether a schema has branches that the `kind` of a table selects."""
    return all("then" in part for part in about.get("allOf", [{}]))


def branch(about: dict[str, Any], table: dict[str, Any], origin: str) -> tuple[dict[str, Any], str]:
    """The schema of the branch that a table's `kind` (or its default) selects, and its file."""
    kind = table.get("kind", about["properties"]["kind"].get("default"))
    then = next(part["then"] for part in about["allOf"] if part["if"]["properties"]["kind"]["const"] == kind)
    return resolved(then, origin)


def _target(reference: str, origin: str) -> tuple[str, dict[str, Any]]:
    """The file and the part of it that a reference in `origin` points to."""
    file, _, pointer = urljoin(origin, reference).partition("#/")
    target = schema(file)
    for part in pointer.split("/") if pointer else []:
        target = target[part]
    return file, target


def _inlined(value: Any, origin: str, definitions: dict[str, Any]) -> Any:
    if isinstance(value, list):
        return [_inlined(item, origin, definitions) for item in value]
    if not isinstance(value, dict):
        return value
    if "$ref" in value:
        return {"$ref": f"#/definitions/{_defined(value['$ref'], origin, definitions)}"}
    result = {key: _inlined(item, origin, definitions) for key, item in value.items()}
    if isinstance(result.get("allOf"), list) and all("then" in branch for branch in result["allOf"]):
        one = "oneOf" if "kind" in result.get("required", ()) else "anyOf"  # without kind several branches fit
        result |= {one: [branch["then"] for branch in result["allOf"]], "additionalProperties": True}
    return result


def _defined(reference: str, origin: str, definitions: dict[str, Any]) -> str:
    """The key in `definitions` of the target of a reference, which is added the first time."""
    file, target = _target(reference, origin)
    pointer = urljoin(origin, reference).partition("#/")[2]
    key = (pointer or file).removesuffix(".json").split("/")[-1]
    if key not in definitions:
        definitions[key] = {}  # reserved before it is filled: a schema may refer to itself
        definitions[key] = {k: v for k, v in _inlined(target, file, definitions).items() if k != "$schema"}
    return key
