"""Caption files beside images: several lines, JSON, other extensions; tables in JSON and Parquet."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from recipe_text import noise, recipe_text, write_recipe

from pivotune.pipeline.checks.recipe import check_recipe
from pivotune.pipeline.data.captions import Captioned, collect_captions
from pivotune.pipeline.recipe.model import Concept


def read(folder: Path, files: dict[str, Any], captions: str = "beside", **keys: Any) -> Captioned:
    """The captions of a concept over these files; what is not a text is written as JSON."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content), "utf-8")
    source = captions if captions in ("beside", "file-name") else str(folder / captions)
    return collect_captions(Concept(folder, source, **keys))


def texts(folder: Path, files: dict[str, Any], captions: str = "beside", **keys: Any) -> dict[str, list[str]]:
    """The captions of each image, by its path in the folder; there must be no problem."""
    found = read(folder, files, captions, **keys)
    assert found.problems == []
    return {path.relative_to(folder).as_posix(): captions for path, captions in found.images}


PARAGRAPHS = "<cat> on a sofa.\nIt is red.\n \n\nThe wall is blue.\n"


@pytest.mark.parametrize(
    ("lines", "text", "captions"),
    [
        ("auto", PARAGRAPHS, ["<cat> on a sofa. It is red. The wall is blue."]),
        ("auto", "\n\na <cat>\nthe <cat>\n\n", ["a <cat>", "the <cat>"]),
        ("random", PARAGRAPHS, ["<cat> on a sofa.", "It is red.", "The wall is blue."]),
        ("join", "a <cat>\r\non a sofa", ["a <cat> on a sofa"]),
        ("tags", "<cat>\nred,\n ,\n\n two of them \n", ["<cat>, red, two of them"]),
    ],
)
def test_several_lines_of_a_caption_file(tmp_path, lines, text, captions):
    assert texts(tmp_path, {"a.png": "", "a.txt": text}, caption_lines=lines) == {"a.png": captions}


def test_tags_on_lines_are_joined_with_the_separator(tmp_path):
    files = {"a.png": "", "a.txt": "<cat>\nred; blue;"}
    assert texts(tmp_path, files, caption_lines="tags", tag_separator=";") == {"a.png": ["<cat>; red; blue"]}


def check(folder: Path, concept: str = "", severity: str = "warning") -> list[str]:
    """The problems of this severity of a recipe over `images` in the folder."""
    text = recipe_text(concepts=f'[[concept]]\nimages = "images"\nrepeats = 9\n{concept}')
    found = check_recipe(write_recipe(folder / "recipe.toml", text)).problems
    return [f"{problem.key}: {problem.text}" for problem in found if problem.severity == severity]


def test_drawn_lines_without_the_placeholder_are_a_warning(tmp_path):
    for name, text in (("a", "a <cat>"), ("b", "a <cat>\nthe <cat>"), ("c", "a <cat>\non a sofa"), ("d", "x\n<cat>")):
        noise(tmp_path / f"images/{name}.png")
        (tmp_path / f"images/{name}.txt").write_text(text, "utf-8")
    (warning,) = check(tmp_path)
    assert warning.startswith("concept.1.captions: one line of a caption file is drawn for each sample, and in 2 of 3 ")
    assert "(c.png: 'on a sofa')" in warning
    assert check(tmp_path, 'caption_lines = "random"') == [warning]
    assert check(tmp_path, 'caption_lines = "join"') == []
    assert check(tmp_path, 'prefix = "<cat> "') == []


def test_lines_without_any_placeholder_or_with_another_one(tmp_path):
    """The first are counted elsewhere; in the second some samples lack an embedding."""
    for name, text in (("a", "a <cat>"), ("b", "a ring\nthe ring"), ("c", "a <cat>\na <dog>")):
        noise(tmp_path / f"images/{name}.png")
        (tmp_path / f"images/{name}.txt").write_text(text, "utf-8")
    both = '\n[[embedding]]\nplaceholder = "<dog>"'
    shown = [text for text in check(tmp_path, both) if "is drawn" in text]
    assert len(shown) == 1
    assert "in 1 of 2 caption files" in shown[0]
    assert "(c.png: 'a <cat>')" in shown[0]


def test_keys_of_caption_files_without_effect_are_a_warning(tmp_path):
    noise(tmp_path / "images/a.png")
    keys = 'captions = ["<cat>"]\ncaption_lines = "join"\ncaption_extension = ".caption"'
    assert check(tmp_path, keys) == [
        f'concept.1.{key}: no effect without captions = "beside"; remove it'
        for key in ("caption_lines", "caption_extension")
    ]


def test_a_caption_file_may_have_the_full_name_of_its_image(tmp_path):
    files = {"a.png": "", "a.png.txt": "one", "a.jpg": "", "a.jpg.caption": "two", "b.PNG": "", "b.PNG.TXT": "three"}
    assert texts(tmp_path, files) == {"a.jpg": ["two"], "a.png": ["one"], "b.PNG": ["three"]}


def test_the_extension_chooses_between_caption_files(tmp_path):
    files = {"a.png": "", "a.txt": "one", "a.caption": "two", "a.wd14": "three", "b.png": "", "b.png.caption": "four"}
    problems = read(tmp_path, files).problems
    assert [text.partition(": ")[2] for text in problems] == [
        'has two caption files, a.txt and a.caption; set caption_extension = ".txt", or keep one'
    ]
    chosen = texts(tmp_path, {}, caption_extension=".caption")
    assert chosen == {"a.png": ["two"], "b.png": ["four"]}
    problems = read(tmp_path, {}, caption_extension=".wd14").problems
    assert problems == [f"{tmp_path}/b.wd14: the caption of b.png is missing"]


def test_an_extension_begins_with_a_dot(tmp_path):
    noise(tmp_path / "images/a.png")
    (text,) = check(tmp_path, 'caption_extension = "caption"', "error")
    assert text.startswith("concept.1.caption_extension: ")


@pytest.mark.parametrize(
    ("content", "captions"),
    [
        ({"caption": "a <cat>", "tags": ["red", "round"], "score": 3}, ["a <cat>, red, round"]),
        ({"tags": "<cat>, red"}, ["<cat>, red"]),
        ({"text": ["a <cat>", " the <cat> "], "tags": []}, ["a <cat>", "the <cat>"]),
        ({"caption": "", "tags": ["<cat>"]}, ["<cat>"]),
    ],
)
def test_captions_in_json(tmp_path, content, captions):
    assert texts(tmp_path, {"a.png": "", "a.json": content}) == {"a.png": captions}


def test_json_beside_a_text_is_not_read(tmp_path):
    """Programs that download images put other facts into it."""
    assert texts(tmp_path, {"a.png": "", "a.json": {"id": 3}, "a.txt": "x"}) == {"a.png": ["x"]}
    assert read(tmp_path, {"a.txt": "x"}).files == [tmp_path / "a.txt"]


@pytest.mark.parametrize("content", [{"id": 3}, [], {"caption": 3}, {"tags": [3]}, {"caption": " "}, 5])
def test_json_without_a_caption_is_an_error(tmp_path, content):
    (problem,) = read(tmp_path, {"a.png": "", "a.json": content}).problems
    assert problem.startswith(f'{tmp_path}/a.json: a caption in JSON is {{"caption": ')


def test_json_that_is_none_is_an_error(tmp_path):
    found = read(tmp_path, {"a.png": "", "a.json": "{", "b.png": "", "b.json": "null", "c.png": "", "c.json": " "})
    ends = ["not JSON: ", "contains null instead of captions", "the caption of c.png is empty"]
    assert all(f": {end}" in text for end, text in zip(ends, found.problems, strict=True)), found.problems


def test_metadata_of_kohya(tmp_path):
    """Its images have no extension, or their path from the root."""
    folder = tmp_path / "images"
    table = {
        "a": {"caption": "a <cat>", "tags": "red, round", "train_resolution": [64, 64]},
        f"{folder}/b.png": {"tags": "<cat>"},
        "sub/c": "the <cat>",
    }
    assert texts(folder, {"a.png": "", "b.png": "", "sub/c.jpg": "", "m.json": table}, "m.json", recursive=True) == {
        "a.png": ["a <cat>, red, round"], "b.png": ["<cat>"], "sub/c.jpg": ["the <cat>"],
    }  # fmt: skip
    problems = read(folder, {"m.json": {"a.png": {}, "d": {"tags": "x"}}}, "m.json").problems
    assert problems[0].endswith('m.json: item 1 is {"file_name": "a.png", "text": "a caption"}')
    assert problems[1].endswith(f"m.json:2: {folder} has no image 'd'")


def test_a_list_in_json_and_other_names_of_columns(tmp_path):
    rows = [{"image": "a.png", "caption": "one"}, {"image_path": "./b.png", "tags": ["two", "red"]}]
    files = {"a.png": "", "b.png": "", "t.json": rows, "t.jsonl": "\n".join(map(json.dumps, rows)),
             "t.csv": "image,text,tags\na.png,one,\nb.png,two,red"}  # fmt: skip
    for table in ("t.json", "t.jsonl", "t.csv"):
        assert texts(tmp_path, files, table) == {"a.png": ["one"], "b.png": ["two, red"]}, table
    assert "a table of captions in JSON is" in read(tmp_path, {"t.json": "3"}, "t.json").problems[0]


def test_parquet_needs_its_package(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (problem,) = read(tmp_path, {"a.png": "", "t.parquet": ""}, "t.parquet").problems
    assert problem.startswith(f"{tmp_path}/t.parquet: reading Parquet needs pyarrow: pip install pyarrow")


def test_a_table_in_parquet(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    def write(**columns: list[Any]) -> Captioned:
        parquet.write_table(pyarrow.table(columns), tmp_path / "t.parquet")
        return read(tmp_path, {"a.png": "", "b.png": ""}, "t.parquet")

    found = write(file_name=["b.png", "a.png", "a.png"], text=["two", "one", "uno"], id=[1, 2, 3])
    assert [(path.name, own) for path, own in found.images] == [("a.png", ["one", "uno"]), ("b.png", ["two"])]
    images = [{"bytes": b"x", "path": name} for name in ("a.png", "b.png")]
    found = write(image=images, caption=["one", ""], tags=[["red"], ["two"]])
    assert [own for _, own in found.images] == [["one, red"], ["two"]]
    assert "needs columns file_name and text; it has id" in write(id=[1]).problems[0]
    assert "row 2 is {" in write(image=["a.png", "b.png"], text=["x", None]).problems[0]
    (tmp_path / "t.parquet").write_bytes(b"PAR1 no table")
    assert "cannot be read as Parquet" in read(tmp_path, {}, "t.parquet").problems[0]


def test_marks_of_other_programs_are_a_warning_with_the_key(tmp_path):
    for name, text in (("a", "<cat> in {red|blue}"), ("b", "<cat> ||| x, (y:1.2)"), ("c", "{<cat>} (a, b) | x")):
        noise(tmp_path / f"images/{name}.png")
        (tmp_path / f"images/{name}.txt").write_text(text, "utf-8")
    assert check(tmp_path) == [
        "concept.1.wildcards: 1 of 3 captions contain '{red|blue}', a wildcard; set wildcards = true to draw one of "
        "its parts for each sample",
        "concept.1.keep_separator: 1 of 3 captions contain '|||', which separates tags that are kept; set "
        "keep_separator = '|||'",
        "concept.1.strip_weights: 1 of 3 captions contain '(y:1.2)', a weight, which training does not have; set "
        "strip_weights = true to remove weights",
    ]
    assert check(tmp_path, 'wildcards = true\nkeep_separator = "|||"\nstrip_weights = true') == []


def test_a_placeholder_that_a_key_would_replace_is_an_error(tmp_path):
    noise(tmp_path / "images/a.png")
    text = recipe_text(
        concepts='[[concept]]\nimages = "images"\ncaptions = ["{cat|||}"]\nwildcards = true\nkeep_separator = "|||"',
        embeddings='[[embedding]]\nplaceholder = "{cat|||}"',
    )
    found = check_recipe(write_recipe(tmp_path / "recipe.toml", text)).problems
    assert [f"{one.key}: {one.text}" for one in found if one.severity == "error"] == [
        "concept.1.wildcards: '{cat|||}' contains a mark of wildcards; rename it",
        "concept.1.keep_separator: '{cat|||}' contains it; rename it",
    ]


def test_weights_are_stripped_from_captions_of_every_source(tmp_path):
    files = {"a.png": "", "a.txt": "the (<cat>:1.2)", "t.jsonl": {"file_name": "a.png", "text": "(<cat>:2)"}}
    keys = {"strip_weights": True, "prefix": "(a:1.1) "}
    assert texts(tmp_path, files, **keys) == {"a.png": ["a the <cat>"]}
    assert texts(tmp_path, files, "t.jsonl", **keys) == {"a.png": ["a <cat>"]}
