"""The schema files: complete, described, pinned to the code they describe, and usable by editors."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from pivotune import schemas
from pivotune.converters.families import families
from pivotune.converters.programs import programs
from pivotune.pipeline.recipe.options import STAGE_OPTIONS
from pivotune.schemas.reference import reference

FOLDER = Path(str(files("pivotune.schemas")))
RECIPE = ("recipe.json", "values.json", *(name for name in schemas.names() if "/" in name))


def parts(value: Any) -> Iterator[dict[str, Any]]:
    """Every table of a schema, but for the conditions that choose a branch."""
    if isinstance(value, dict):
        yield value
        value = {key: item for key, item in value.items() if key != "if"}
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from parts(item)


@pytest.mark.parametrize("name", schemas.names())
def test_a_schema_is_a_schema(name: str) -> None:
    jsonschema.validators.validator_for(schemas.schema(name)).check_schema(schemas.schema(name))


@pytest.mark.parametrize("name", RECIPE)
def test_every_property_is_described_and_no_table_is_open(name: str) -> None:
    for part in parts(schemas.schema(name)):
        for key, about in part.get("properties", {}).items():
            assert about.get("description") or about.keys() == {"const"}, (name, key)
        if part.get("type") == "object" and "allOf" not in part:  # what allOf leads to is looked at there
            assert part.get("additionalProperties") is not None, part


@pytest.mark.parametrize("name", RECIPE)
def test_every_option_has_a_default_or_says_what_leaving_it_out_means(name: str) -> None:
    for part in parts(schemas.schema(name)):
        for key, about in part.get("properties", {}).items():
            optional = key not in part.get("required", ())
            assert not optional or "default" in about or re.search("Default|left out", about["description"]) or key in (
                "revision", "variant", "config",
            ), (name, key)  # fmt: skip


@pytest.mark.parametrize("name", RECIPE)
def test_references_between_files_are_relative_and_lead_somewhere(name: str) -> None:
    assert "$id" not in schemas.schema(name)  # an editor would look there instead of beside the file
    for part in parts(schemas.schema(name)):
        file, _, pointer = part.get("$ref", "").partition("#/")
        assert ":" not in file
        if file:
            target = (FOLDER / name).parent / file
            assert target.is_file()
            about: Any = json.loads(target.read_text("utf-8"))
            for key in pointer.split("/") if pointer else []:
                about = about[key]


def test_references_are_resolved_without_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "socket", lambda *_, **__: pytest.fail("the network was asked"))
    train = {"kind": "train", "steps": 1, "learning_rate": {"clip_l": -1}}
    found = list(schemas.violations({"name": "x", "model": {"base": "micro"}, "stage": [train]}))
    assert [list(error.absolute_path) for error in found] == [["stage", 0, "learning_rate", "clip_l"]]


def test_the_file_for_editors_is_up_to_date() -> None:
    made = schemas.bundled("recipe.json")
    assert schemas.schema("editor.json") == made, "generate it again: pivotune schema recipe > schemas/editor.json"
    for part in parts(made):
        assert part.get("$ref", "#/definitions/").startswith("#/definitions/")
    assert set(made["definitions"]) >= {"train", "export", "norm", "learning_rate"}


def test_shipped_recipes_name_the_file_for_editors() -> None:
    for path in Path(str(files("pivotune.recipes"))).glob("*.toml"):
        first = path.read_text("utf-8").splitlines()[0]
        assert first.startswith("#:schema ")
        assert (path.parent / first.removeprefix("#:schema ")).resolve() == (FOLDER / "editor.json").resolve()


def test_a_stages_branch_is_chosen_by_its_kind() -> None:
    stage = schemas.schema("recipe.json")["properties"]["stage"]["items"]
    files = {path.stem for path in (FOLDER / "stages").glob("*.json")}
    assert set(stage["properties"]["kind"]["enum"]) == files
    for kind in files:
        assert schemas.branch(stage, {"kind": kind}, "recipe.json")[0] == schemas.schema(f"stages/{kind}.json")


def test_families_and_targets_are_those_of_the_converters() -> None:
    model = schemas.schema("recipe.json")["properties"]["model"]["properties"]
    assert model["family"]["enum"] == list(families())
    folder = Path(str(files("pivotune.converters.programs")))
    assert set(programs()) == {path.stem for path in folder.glob("*.json")}
    assert all((folder / f"{program.module or name}.py").is_file() for name, program in programs().items())


def test_stages_are_those_of_the_schema() -> None:
    from pivotune.pipeline.stages import STAGES

    kinds = schemas.schema("recipe.json")["properties"]["stage"]["items"]["properties"]["kind"]["enum"]
    assert set(STAGES) == set(STAGE_OPTIONS) == set(kinds)


def test_the_reference_is_up_to_date_and_names_every_key() -> None:
    page = reference()
    made = (Path(str(files("pivotune.schemas"))) / "README.md").read_text("utf-8")
    assert made == page, "make it again: python -m pivotune.schemas.reference > schemas/README.md"
    for name in RECIPE:
        for part in parts(schemas.schema(name)):
            for key in part.get("properties", {}):
                assert f"| `{key}` |" in page or key == "kind", (name, key)


def test_examples_fit_their_schemas():
    found = [
        (name, {key: one for key, one in about.items() if "$ref" not in json.dumps(one)}, value)
        for name in schemas.names()
        if name not in ("editor.json", "manifest.json")
        for about in parts(schemas.schema(name))
        for value in about.get("examples", [])
    ]
    assert len(found) > 30
    for name, about, value in found:
        assert jsonschema.Draft7Validator(about).is_valid(value), (name, value)
