"""`schemas/README.md`, the reference of every key of a recipe: `python -m pivotune.schemas.reference` prints it."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any

from . import has_branches, inner_tables, names, resolved, schema

HEAD = """# Every key of a recipe

Made from the schemas in this folder (`python -m pivotune.schemas.reference`); a test keeps it up to date. `pivotune
schema NAME` prints the schema itself, and `pivotune check` names the line and the nearest key of every mistake.
Paths are relative to the recipe's folder.
"""
TABLES = {
    "generate": "[concept.generate]",
    "concept": "[[concept]]",
    "embedding": "[[embedding]]",
    "optimizer": "optimizer = { … }",
    "schedule": "schedule = { … }",
}
LARGE = 100_000  # larger limits only catch mistakes and are not shown
SIGNS = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}


def reference() -> str:
    """The whole page as Markdown: a section for each table, with a row for each key."""
    sections = [HEAD, *_section("Top level", schema("recipe.json"), "recipe.json", inner=True)]
    for key, file in inner_tables().items():
        if file == "recipe.json":
            about = schema(file)["properties"][key]
            title = f"[[{key}]]" if about.get("type") == "array" else f"[{key}]"
            about, home = resolved(about.get("items", about), file)
            sections += _section(title, about, home)
    for file in names():
        folder, _, name = file.removesuffix(".json").rpartition("/")
        if folder == "tables":
            sections += _section(TABLES.get(name, f"[stage.{name}]"), schema(file), file)
    return "\n".join(sections) + "\n"


def _section(title: str, about: dict[str, Any], file: str, *, inner: bool = False) -> Iterator[str]:
    """A heading, the description, and a table of the keys; a section for each branch that `kind` chooses."""
    yield f"\n## `{title}`\n\n{_sentence(about.get('description', ''))}\n"
    required = about.get("required", ())
    rows = [_row(key, one, file, key in required) for key, one in about.get("properties", {}).items()]
    yield from _table(rows)
    if not inner and has_branches(about):
        for part in about["allOf"]:
            kind = part["if"]["properties"]["kind"]["const"]
            branch, home = resolved(part["then"], file)
            own = {key: one for key, one in branch.get("properties", {}).items() if key != "kind"}
            yield f"\n### kind = {json.dumps(kind)}\n\n{_sentence(branch.get('description', ''))}\n"
            yield from _table([_row(key, one, home, key in branch.get("required", ())) for key, one in own.items()])
    for key, one in about.get("properties", {}).items():
        whole, home = resolved(one, file)
        if "$ref" not in json.dumps(one) and not inner and "properties" in whole:
            yield f"\n### {key} = {{ … }}\n"
            yield from _table([_row(name, each, home, False) for name, each in whole["properties"].items()])


def _table(rows: list[str]) -> Iterator[str]:
    if rows:
        yield "| key | type | default | meaning |\n| --- | --- | --- | --- |\n" + "\n".join(rows)


def _row(key: str, about: dict[str, Any], file: str, required: bool) -> str:
    whole, home = resolved(about, file)
    default = "required" if required else f"`{_toml(whole['default'])}`" if "default" in whole else ""
    example = f" Example: `{_toml(whole['examples'][0])}`." if "examples" in whole else ""
    cells = (f"`{key}`", _type(whole, home), default, _sentence(whole.get("description", "")) + example)
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _type(about: dict[str, Any], file: str) -> str:
    """The type of a key as text: `number > 0`, `"a" or "b"`, `list of strings`."""
    about, file = resolved(about, file)
    if "const" in about:
        return f"`{_toml(about['const'])}`"
    if "enum" in about:
        return " or ".join(f"`{_toml(one)}`" for one in about["enum"])
    if "anyOf" in about and "type" not in about:
        return " or ".join(dict.fromkeys(_type(one, file) for one in about["anyOf"]))
    kinds = about.get("type", "object")
    kinds = kinds if isinstance(kinds, list) else [kinds]
    return " or ".join(_plain(kind, about, file) for kind in kinds)


def _plain(kind: str, about: dict[str, Any], file: str) -> str:
    if kind in ("number", "integer"):
        limits = " and ".join(
            f"{sign} {about[name]:g}" for name, sign in SIGNS.items() if name in about and about[name] < LARGE
        )
        return f"{'whole number' if kind == 'integer' else 'number'} {limits}".strip()
    if kind == "array":
        items, _ = resolved(about.get("items", {}), file)
        return "list of tables" if "properties" in items else f"list of {_type(about.get('items', {}), file)}"
    return {"boolean": "`true` or `false`", "object": "table"}.get(kind, kind)


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_toml(one)}" for key, one in value.items()) + " }" if value else "{}"
    return json.dumps(value, ensure_ascii=False)


def _sentence(text: str) -> str:
    """A description with a full stop, safe in Markdown outside code spans."""
    text = text if not text or text.endswith(".") else f"{text}."
    parts = text.split("`")
    parts[::2] = [part.replace("[[", "\\[[").replace("<", "&lt;").replace("*", "\\*") for part in parts[::2]]
    return "`".join(parts)


if __name__ == "__main__":
    sys.stdout.write(reference())
