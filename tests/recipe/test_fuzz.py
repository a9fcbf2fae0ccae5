"""Whatever a document holds, checking it ends in embeddings and never in a traceback."""

from __future__ import annotations

import copy
import datetime
import math
from pathlib import Path
from typing import Any

import tomli
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pivotune import schemas
from pivotune.pipeline.checks.recipe import check_built, check_valid_parts
from pivotune.pipeline.recipe.document import Document, refuse_deep, shipped
from pivotune.pipeline.recipe.load import recipe_as_json, recipe_from_json, validated

GOOD = [tomli.loads(path.read_text("utf-8")) for path in shipped().values()]
EMBEDDINGS = [
    "",
    " ",
    "micro",
    "never",
    "5 steps",
    "<emblem>",
    "emblem",
    "train",
    "median",
    "a\0b",
    "../x",
    "é\u0301",
    "x" * 200,
]
SCALARS = st.one_of(
    st.sampled_from(EMBEDDINGS),
    st.text(max_size=8),
    st.integers(-3, 100),
    st.sampled_from([2**63, -(2**64), 10**400]),
    st.floats(),
    st.booleans(),
    st.just(datetime.datetime(2024, 1, 1)),
    st.just(datetime.time(12)),
)
JUNK = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from(["kind", "steps", "low", "high", "clip_l", "rank", "x"]), inner, max_size=3),
    ),
    max_leaves=6,
)


def places(value: Any, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    """Every path of a document."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(inner for key, item in items for inner in places(item, (*path, key)))]


@st.composite
def mutated(draw: st.DrawFn) -> dict[str, Any]:
    """A recipe that ships, with up to three things replaced, removed or added."""
    data = copy.deepcopy(draw(st.sampled_from(GOOD)))
    for _ in range(draw(st.integers(1, 3))):
        *path, last = draw(st.sampled_from([place for place in places(data) if place]))
        target = data
        for part in path:
            target = target[part]  # type: ignore[index]
        what = draw(st.sampled_from(["replace", "remove", "add"]))
        if what == "replace":
            target[last] = draw(JUNK)  # type: ignore[index]
        elif what == "remove":
            del target[last]  # type: ignore[arg-type]
        elif isinstance(target, dict):
            target[draw(st.sampled_from(["lora", "to", "repeats", "tokens", "sedes"]))] = draw(JUNK)
    return data


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(mutated())
def test_a_mutated_recipe_is_accepted_or_refused_with_a_message(data: dict[str, Any]) -> None:
    document = Document(Path(str(shipped()["quickstart"])), "", data)
    refuse_deep(data)
    recipe, document, problems = validated(document)
    if recipe is None:
        problems += check_valid_parts(document)
    else:
        problems = check_built(recipe, document).problems
        assert recipe_from_json(recipe_as_json(recipe), recipe.path) == recipe
    assert (recipe is None) <= bool(problems)
    for problem in problems:
        shown = problem.shown("x.toml")
        assert shown.isprintable()
        assert len(shown) < 1000


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(mutated())
def test_what_is_let_through_fits_plain_json_schema(data: dict[str, Any]) -> None:
    """Our own embeddings and stricter rules never accept what the schema itself refuses."""
    import jsonschema

    recipe, _, _ = validated(Document(Path(str(shipped()["quickstart"])), "", data))
    validator = jsonschema.Draft7Validator(schemas.schema("editor.json"))
    if recipe is not None:
        assert list(validator.iter_errors(data)) == []
        assert not any(isinstance(value, float) and not math.isfinite(value) for value in leaves(data))


def leaves(value: Any) -> list[Any]:
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return [value] if items is None else [leaf for item in items for leaf in leaves(item)]
