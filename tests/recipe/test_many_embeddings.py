"""Embeddings from tables and from folders of folders: what they become, what is refused, and how long it takes."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from shutil import copytree

import pytest
from recipe.conftest import GOOD, HERE

from pivotune.pipeline.checks.recipe import Checked, check_recipe
from pivotune.pipeline.recipe.intervals import Every
from pivotune.pipeline.recipe.load import load_recipe, recipe_as_json, recipe_from_json

BEFORE, AFTER = GOOD.split('[[embedding]]\nplaceholder = "<emblem>"\n')


@pytest.fixture
def recipe(tmp_path: Path) -> Callable[..., Path]:
    """Writes a recipe with one [[embeddings_from]], and the table of embeddings where it is given."""

    def write(source: str, table: bytes | None = None, name: str = "embeddings.csv", before: str = BEFORE) -> Path:
        path = tmp_path / "recipe.toml"
        path.write_text(f"{before}\n[[embeddings_from]]\n{source}\n{AFTER}", "utf-8")
        if table is not None:
            (tmp_path / name).write_bytes(table)
        return path

    return write


def shown(checked: Checked, folder: Path) -> list[str]:
    return [problem.shown("recipe.toml").replace(f"{folder}/", "") for problem in checked.problems]


def test_a_table_gives_embeddings_with_their_own_settings_and_those_of_all(recipe):
    table = (
        b"placeholder,initial_text,tokens,learning_rate,stop_after,train\r\n"
        b'<emblem>,"a ring, teal",3,{ clip_l = 1e-3 },60 %,\r\n\r\n'
        b'<other>,"say ""hi""",,1e-2,,FALSE\r\n'
    )
    embeddings = load_recipe(
        recipe("table = 'embeddings.csv'\nembedding = { tokens = 2 }", b"\xef\xbb\xbf" + table)
    ).embeddings
    assert [(one.placeholder, one.initial_text, one.tokens, one.train) for one in embeddings] == [
        ("<emblem>", "a ring, teal", 3, True), ("<other>", 'say "hi"', 2, False),
    ]  # fmt: skip
    assert embeddings[0].learning_rate == {"clip_l": 1e-3}
    assert embeddings[0].stop_after == Every(60.0, "percent")
    assert embeddings[1].learning_rate == 1e-2


def test_json_lines_and_names_in_patterns(recipe):
    lines = ['{"name": "red_ring"}', "", '{"name": "b", "initial_text": "{name}", "tokens": 1}']
    source = "table = 'embeddings.jsonl'\nembedding = { placeholder = '<{name}>', initial_text = 'a {text}' }"
    embeddings = load_recipe(recipe(source, "\r\n".join(lines).encode(), "embeddings.jsonl")).embeddings
    assert [(embedding.placeholder, embedding.initial_text, embedding.tokens) for embedding in embeddings] == [
        ("<red_ring>", "a red ring", None), ("<b>", "{name}", 1),  # what a row says itself is taken as it stands
    ]  # fmt: skip


def test_semicolons_tabs_and_columns_for_people(recipe, tmp_path):
    embeddings = load_recipe(
        recipe("table = 'embeddings.csv'\nignore = ['note']", b"name;note;tokens\na;x,y;2\n")
    ).embeddings
    assert [(embedding.placeholder, embedding.tokens) for embedding in embeddings] == [("a", 2)]
    embeddings = load_recipe(recipe("table = 'embeddings.tsv'", b"name\ttokens\na b\t2\n", "embeddings.tsv")).embeddings
    assert [(embedding.placeholder, embedding.tokens) for embedding in embeddings] == [("a b", 2)]


def make_folders(tmp_path: Path, *names: str) -> None:
    for name in names:
        copytree(HERE / "images", tmp_path / "things" / name)


def test_a_folder_of_folders_gives_embeddings_and_their_images(recipe, tmp_path):
    make_folders(tmp_path, "red_ring", "cat")
    (tmp_path / "things/.hidden").mkdir()
    (tmp_path / "things/@eaDir").mkdir()
    (tmp_path / "things/cat/embedding.toml").write_text('initial_text = "a tabby"\nstop_after = "5 steps"', "utf-8")
    source = (
        "folders = 'things'\nembedding = { placeholder = '<{name}>', initial_text = '{text}' }\n"
        "concept = { captions = ['a photo of {placeholder}', '{name}'], repeats = 2 }"
    )
    made = load_recipe(recipe(source))
    assert [(one.placeholder, one.initial_text, one.stop_after.value) for one in made.embeddings] == [
        ("<cat>", "a tabby", 5.0), ("<red_ring>", "red ring", 0.0),
    ]  # fmt: skip
    assert [(one.images.name, one.captions, one.repeats) for one in made.concepts[1:]] == [
        ("cat", ("a photo of <cat>", "cat"), 2), ("red_ring", ("a photo of <red_ring>", "red_ring"), 2),
    ]  # fmt: skip
    assert recipe_from_json(recipe_as_json(made), made.path) == made
    assert not check_recipe(made.path).failed


def test_a_table_may_name_the_images_of_each_embedding(recipe, tmp_path):
    make_folders(tmp_path, "x")
    made = load_recipe(
        recipe("table = 'embeddings.csv'\nconcept = { captions = ['{placeholder}'] }", b"name,images\na,things/x\n")
    )
    assert [(one.images, one.captions) for one in made.concepts[1:]] == [(tmp_path / "things/x", ("a",))]


BAD: dict[str, tuple[bytes, list[str]]] = {
    "empty": (b"", ["embeddings.csv:1: the table is empty; its first line must be a header such as name,initial_text"]),
    "header only": (b"name,tokens\n", ["recipe.toml:8: embeddings_from.1: no embeddings found"]),
    "missing column": (
        b"tokens\n2\n", ["embeddings.csv:1: a column 'name' or 'placeholder' is required"],
    ),
    "unknown column": (
        b"name,initial_txt\na,b\n",
        [
            "embeddings.csv:1: unknown column 'initial_txt'; did you mean 'initial_text'? "
            "(columns to skip go into `ignore`)"
        ],
    ),
    "column twice": (b"name,name\na,b\n", ["embeddings.csv:1: duplicate column 'name'"]),
    "not UTF-8": (b"name\na\n\xff\xfe\n", ["embeddings.csv:3: not UTF-8 (UTF-16); save the table as UTF-8"]),
    "latin-1": (b"name\nH\xe4nd\n", ["embeddings.csv:2: not UTF-8 (byte 0xe4); save the table as UTF-8"]),
    "too many cells": (b"name,tokens\na,2,3\nb,2\n", ["embeddings.csv:2: 3 cells, but the header has 2 columns"]),
    "open quote": (b'name\na\n"b\nc\n', ["embeddings.csv:3: not CSV: unexpected end of data"]),
    "wrong values": (
        b"name,tokens,train,stop_after\na,two,,\nb,0,maybe,\nc,2,,0 steps\nd,1.5,,10 parsecs\n",
        [
            "embeddings.csv:2: tokens: expected a whole number, got 'two'",
            "embeddings.csv:3: tokens: 0 is too small; the minimum is 1",
            "embeddings.csv:3: train: expected true or false, got 'maybe'",
            "embeddings.csv:4: stop_after: 0 never trains the embedding; use train = false instead",
            "embeddings.csv:5: tokens: expected a whole number, got 1.5",
            "embeddings.csv:5: stop_after: 'parsecs' is not a known unit; "
            "known: steps, epochs, seconds, minutes, hours, %",
        ],
    ),
    "no number": (b"name,learning_rate\na,nan\n", ["embeddings.csv:2: learning_rate: not a finite number"]),
    "name of two lines": (
        b'name\n"a\nb"\nc\n',
        [
            "embeddings.csv:2: placeholder: 'a\\nb' is not one line of at most 100 characters, "
            "without spaces at its ends"
        ],
    ),
    "no name": (
        b"name,tokens\n,2\n",
        ["embeddings.csv:2: 'name' (or 'placeholder') must be a string, and so must 'images' if present"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_bad_table_is_refused_with_its_lines(recipe, tmp_path, name):
    table, wanted = BAD[name]
    assert shown(check_recipe(recipe("table = 'embeddings.csv'", table)), tmp_path) == wanted


def test_bad_json_lines_are_named(recipe, tmp_path):
    table = b'{"name": "a"}\n{"name": }\n[1]\n{"name": 3}\n{"nam": "b"}\n{"name": "c", "tokens": NaN}\n'
    found = shown(check_recipe(recipe("table = 'embeddings.jsonl'", table, "embeddings.jsonl")), tmp_path)
    assert [line.split(": ")[0] for line in found] == [f"embeddings.jsonl:{number}" for number in (2, 3, 4, 5, 6)]


def test_a_line_of_100_mb_is_refused(recipe, tmp_path):
    path = recipe("table = 'embeddings.csv'", b"name\n" + b"x" * 100_000_000)
    assert shown(check_recipe(path), tmp_path) == [
        "embeddings.csv:2: line longer than 1,000,000 bytes; not a table of embeddings"
    ]


@pytest.mark.parametrize(
    ("source", "wanted"),
    [
        (
            "table = 'embeddings.csv'\nfolders = '.'",
            "recipe.toml:8: embeddings_from.1: give either `table` or `folders`",
        ),
        ("ignore = []", "recipe.toml:8: embeddings_from.1: give either `table` or `folders`"),
        (
            "table = 'embedings.csv'",
            "embedings.csv: cannot be read: No such file or directory; did you mean 'embeddings.csv'?",
        ),
        ("table = 'embeddings.txt'", "embeddings.txt: not a table of embeddings; supported: .csv, .tsv, .jsonl"),
        ("folders = 'embeddings.csv'", "embeddings.csv: the folder cannot be read: Not a directory"),
        ("table = 'embeddings.csv'\nembedding = { token = 2 }", "recipe.toml:10: embeddings_from.1.embedding.token: "),
        (
            "table = 'embeddings.csv'\nembedding = { stop_after = '0 own steps' }",
            "recipe.toml:10: embeddings_from.1.embedding.stop_after: 0 never trains the embedding",
        ),
        (
            "table = 'embeddings.csv'\nconcept = { images = 'x' }",
            "recipe.toml:10: embeddings_from.1.concept.images: each",
        ),
        ("folders = '.'\nignore = ['x']", "recipe.toml:10: embeddings_from.1.ignore: folders have no columns"),
    ],
)  # fmt: skip
def test_a_bad_source_is_refused(recipe, tmp_path, source, wanted):
    checked = check_recipe(recipe(source, b"name\na\n"))
    [found] = [problem for problem in checked.problems if problem.severity == "error"]
    assert found.shown("recipe.toml").replace(f"{tmp_path}/", "").startswith(wanted)


def test_folders_and_pipes_are_no_tables(recipe, tmp_path):
    import os

    os.mkfifo(tmp_path / "pipe.csv")
    (tmp_path / "folder.csv").mkdir()
    found = shown(check_recipe(recipe("table = 'pipe.csv'")), tmp_path)
    assert found == ["pipe.csv: cannot be read: not a regular file"]
    found = shown(check_recipe(recipe("table = 'folder.csv'")), tmp_path)
    assert found == ["folder.csv: cannot be read: is a folder; use `folders` instead of `table`"]


def test_a_bad_embedding_toml_is_named(recipe, tmp_path):
    make_folders(tmp_path, "a", "b")
    (tmp_path / "things/a/embedding.toml").write_text("tokens = ", "utf-8")
    (tmp_path / "things/b/embedding.toml").write_text("token = 2", "utf-8")
    found = shown(check_recipe(recipe("folders = 'things'")), tmp_path)
    assert found[0].startswith("things/a/embedding.toml:1: cannot be read as TOML: ")
    assert found[1] == "things/b/embedding.toml:1: token: unknown key 'token'; did you mean 'tokens'?"


def test_names_of_all_sources_are_checked_together(recipe, tmp_path):
    table = b"name\n<emblem>\ncat\nred cat\nCAT\n<cat>\n"
    found = shown(check_recipe(recipe("table = 'embeddings.csv'", table)), tmp_path)
    texts = "\n".join(found)
    assert "embeddings.csv:5: placeholder: 'CAT' and 'cat' are the same placeholder" in texts
    assert "embeddings.csv:4: placeholder: warning: 'red cat' contains 'cat'" in texts
    assert (
        "embeddings.csv:6: placeholder: '<cat>' and 'cat' would both be written to cat.safetensors; rename one" in texts
    )
    assert "embeddings.csv:3: placeholder: none of" in texts


def big(recipe: Callable[..., Path], tmp_path: Path, count: int) -> Path:
    (tmp_path / "captions.txt").write_text("".join(f"a photo of <thing-{n}>\n" for n in range(count)), "utf-8")
    before = BEFORE.replace("[[concept]]", "[[concept]]\ncaptions = 'captions.txt'")
    table = "name,initial_text,tokens\r\n" + "".join(f"thing-{n},a thing {n % 97},2\r\n" for n in range(count))
    source = "table = 'embeddings.csv'\nembedding = { placeholder = '<{name}>' }"
    return recipe(source, table.encode(), before=before)


def test_checking_ten_times_the_embeddings_calls_at_most_about_ten_times_the_functions(recipe, tmp_path):
    calls = {}
    for count in (200, 2_000):
        path = big(recipe, tmp_path, count)
        calls[count] = 0

        def called(frame: object, event: str, about: object, count: int = count) -> None:
            calls[count] += event in ("call", "c_call")

        sys.setprofile(called)
        try:
            checked = check_recipe(path)
        finally:
            sys.setprofile(None)
        assert checked.problems == []
        assert len(checked.captions_with) == count
    assert calls[2_000] < 12 * calls[200]  # a loop in a loop would give 100


def test_ten_thousand_findings_are_counted_not_listed(recipe, tmp_path):
    path = recipe("table = 'embeddings.csv'", b"name\n" + b"".join(b"embedding-%d\n" % n for n in range(10_000)))
    found = shown(check_recipe(path), tmp_path)
    assert len(found) < 30
    assert any("and 9,990 more of this kind" in line for line in found)
    bad = b"name,tokens\n" + b"".join(b"embedding-%d,0\n" % n for n in range(10_000))
    found = shown(check_recipe(recipe("table = 'embeddings.csv'", bad)), tmp_path)
    assert len(found) == 101
    assert found[-1] == "recipe.toml: and 9,900 more problems of this kind"


def test_the_document_that_a_manifest_keeps_has_the_embeddings_themselves(recipe):
    made = load_recipe(recipe("table = 'embeddings.csv'", b"name\na\nb\n"))
    document = json.loads(json.dumps(recipe_as_json(made)))
    assert "embeddings_from" not in document
    assert [embedding["placeholder"] for embedding in document["embedding"]] == ["a", "b"]
