"""The line of every key, in documents of every shape that TOML has."""

from __future__ import annotations

import json

import tomli
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pivotune.pipeline.recipe.document import key_lines

SHAPES = '''# a comment = 1
name = "a" # b = 2

[model]
base = """
[not.a.table]
key = 1
"""
"quoted key" = 'x = [1]'
dotted . key = 1

[[concept]]
images = [ # inside
  "a]",
  "b",
]
[[concept]]
inline = { a = 1, b = { c = [1, { d = 2 }] } }
[concept.sub]
x = 1
[[concept.deep]]
y = 1
[[concept.deep]]
y = 2
[model.after]
z = \'\'\'
x = 1\'\'\'
last = 1979-05-27 07:32:00
'''


def test_every_shape_has_its_line() -> None:
    lines = key_lines(SHAPES)
    assert lines["name",] == 2
    assert lines["model", "base"] == 5
    assert lines["model", "quoted key"] == 9
    assert lines["model", "dotted", "key"] == 10
    assert lines["concept", 0] == 12
    assert lines["concept", 0, "images", 1] == 15
    assert lines["concept", 1] == 17
    assert lines["concept", 1, "inline", "b", "c", 1, "d"] == 18
    assert lines["concept", 1, "sub", "x"] == 20
    assert lines["concept", 1, "deep", 1, "y"] == 24
    assert lines["model", "after", "last"] == 28
    assert ("not",) not in lines


def paths(value: object, path: tuple[str | int, ...] = ()) -> set[tuple[str | int, ...]]:
    """Every path of a parsed document."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return {path} - {()} | {inner for key, item in items for inner in paths(item, (*path, key))}


def test_every_path_has_a_line_and_no_other() -> None:
    assert set(key_lines(SHAPES)) == paths(tomli.loads(SHAPES))


KEYS = st.sampled_from(["a", "b-1", '"x y"', "'q.r'", "k_9", '"\\u0041"'])
VALUES = st.recursive(
    st.sampled_from(["1", "true", '"t = [1]"', "'#'", '"""\nx = 1\n"""', "1.5e3", "2024-01-01", '"\\""']),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(lambda items: "[\n" + ", # c\n".join(items) + "\n]"),
        st.dictionaries(KEYS, inner, max_size=3).map(
            lambda table: "{ " + ", ".join(f"{key} = {value}" for key, value in table.items()) + " }"
        ),
    ),
    max_leaves=6,
)
TABLES = st.tuples(
    st.sampled_from(["[{}]", "[[{}]]"]),
    st.lists(KEYS, min_size=1, max_size=3),
    st.dictionaries(KEYS, VALUES, max_size=3),
    st.sampled_from(["\n", "\r\n", "\n\n# note\n"]),
)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(TABLES, max_size=5))
def test_documents_made_at_random(tables: list[tuple[str, list[str], dict[str, str], str]]) -> None:
    text = ""
    for header, name, body, end in tables:
        rows = [header.format(" . ".join(name)), *(f"{key}={value}" for key, value in body.items())]
        text += end.join(rows) + end
    try:
        data = tomli.loads(text)
    except tomli.TOMLDecodeError:
        return
    lines = key_lines(text)
    assert set(lines) == paths(data)
    source = text.replace("\r\n", "\n").split("\n")
    for path, line in lines.items():
        if isinstance(path[-1], str):
            assert path[-1] in source[line - 1] or json.dumps(path[-1]) in source[line - 1] or path[-1] == "A"
