"""The example run fits the manifest's schema, and the schema is strict and described throughout."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from importlib import resources
from typing import Any

import jsonschema
import pytest
from report.example import embedding, manifest

SCHEMA = json.loads((resources.files("pivotune.schemas") / "manifest.json").read_text(encoding="utf-8"))
CHECK = jsonschema.Draft202012Validator(SCHEMA)


def objects(schema: Any, place: str = "$") -> Iterator[tuple[str, dict[str, Any]]]:
    if isinstance(schema, dict):
        if "properties" in schema and place.rsplit(".", 1)[-1] not in {"if", "then", "else"}:
            yield place, schema
        for key, value in schema.items():
            yield from objects(value, f"{place}.{key}")


def test_examples_fit() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    CHECK.validate(manifest())
    CHECK.validate(
        manifest(
            [embedding("<a>", ("clip_l", "clip_g"), 3, stopped_at=7), embedding("b", train=False, images=["b.png"])]
        )
    )
    failed = manifest([], status="failed", error="no images", proofs={}, stages=[])
    del failed["model"], failed["data"]
    CHECK.validate(failed)


def test_every_object_is_closed_and_every_property_described() -> None:
    found = list(objects(SCHEMA))
    assert len(found) > 8
    for place, schema in found:
        assert schema.get("additionalProperties") is False, place
        undescribed = [
            k for k, v in schema["properties"].items() if "description" not in v and "$ref" not in v and "enum" not in v
        ]
        assert undescribed == [], place


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (["status"], "done"),
        (["error"], "although it finished"),
        (["seconds"], -1),
        (["recipe_sha256"], "abc"),
        (["surplus"], 1),
        (["embeddings", 0, "encoders", "clip_l", "nearest"], [[["ring"]]]),
        (["artefacts", 0, "kind"], "pickle"),
        (["images"], [{"path": "x.png", "when": "later", "prompt": "", "embedding": None, "seed": 1}]),
        (["data", "coverage", "<emblem>"], 1.5),
    ],
)
def test_wrong_values_are_refused(path: list[Any], value: Any) -> None:
    made = copy.deepcopy(manifest())
    place: Any = made
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    assert not CHECK.is_valid(made)
