"""Captions from every supported source, and errors for missing ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from pivotune.pipeline.data.captions import collect_captions, read_captions
from pivotune.pipeline.errors import RecipeError
from pivotune.pipeline.recipe.model import Concept

Make = Callable[..., Concept]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Makes a folder of files (name to text) and a concept over it."""

    def concept(captions: str | tuple[str, ...] = "beside", **texts: str) -> Concept:
        for name, text in texts.items():
            (tmp_path / name.replace("__", ".")).write_text(text, "utf-8")
        return Concept(tmp_path, captions, 1)

    return concept


def row(name: str, text: str) -> str:
    """One line of a table of captions."""
    return json.dumps({"file_name": name, "text": text})


def names(concept: Concept) -> list[tuple[str, list[str]]]:
    return [(path.name, texts) for path, texts in read_captions(concept)]


def test_beside(make: Make) -> None:
    concept = make(b__png="", a__JPG="", a__txt="one\n  two  \n\n", b__txt="\ufeffthree", notes__md="no image")
    assert names(concept) == [("a.JPG", ["one", "two"]), ("b.png", ["three"])]


def test_templates_are_captions_of_every_image(make: Make) -> None:
    assert names(make(("x <e>", "y"), a__png="", b__webp="")) == [("a.png", ["x <e>", "y"]), ("b.webp", ["x <e>", "y"])]


def test_file_names(make: Make) -> None:
    assert names(make("file-name", **{"a cat on red__png": ""})) == [("a cat on red.png", ["a cat on red"])]


def test_hidden_files_and_folders_are_no_images(make: Make, tmp_path: Path) -> None:
    (tmp_path / "folder.png").mkdir()
    (tmp_path / ".hidden.png").write_bytes(b"x")
    assert names(make(("x",), a__png="")) == [("a.png", ["x"])]


def test_a_table(make: Make, tmp_path: Path) -> None:
    rows = f"{row('b.png', ' two ')}\n\n{row('a.png', 'one')}\n{row('a.png', 'uno')}"
    concept = make(str(tmp_path / "t.jsonl"), a__png="", b__png="", t__jsonl=rows)
    assert names(concept) == [("a.png", ["one", "uno"]), ("b.png", ["two"])]


def test_all_errors_of_a_table_are_reported(make: Make, tmp_path: Path) -> None:
    wrong = [row("aa.png", "x"), "not json", "[]", '{"file_name": "b.png"}', row("b.png", " "), row("c.png", "c")]
    concept = make(str(tmp_path / "t.jsonl"), a__png="", c__png="", t__jsonl="\n".join(wrong))
    problems = [problem.replace(f"{tmp_path}/", "") for problem in collect_captions(concept).problems]
    assert problems[0] == f"t.jsonl:1: {tmp_path} has no image 'aa.png'; did you mean 'a.png'?"
    assert problems[1].startswith("t.jsonl:2: not JSON: ")
    assert problems[2] == problems[3].replace(":4:", ":3:") == problems[4].replace(":5:", ":3:")
    assert problems[5] == "t.jsonl: no caption for a.png; add a line for it"
    assert len(problems) == 6
    assert [path.name for path, _ in collect_captions(concept).images] == ["c.png"]


def test_a_table_nested_without_end_is_not_json(make: Make, tmp_path: Path) -> None:
    concept = make(str(tmp_path / "t.jsonl"), a__png="", t__jsonl="[" * 200_000)
    assert "not JSON" in collect_captions(concept).problems[0]


def test_every_missing_caption_is_named(make: Make, tmp_path: Path) -> None:
    (tmp_path / "c.txt").write_bytes(b"\xff\xfe")
    (tmp_path / "d.txt").mkdir()
    concept = make(a__png="", b__png="", b__txt=" \n", c__png="", d__png="")
    with pytest.raises(RecipeError) as caught:
        read_captions(concept)
    shown = [problem.replace(f"{tmp_path}/", "") for problem in caught.value.problems]
    assert shown == [
        "a.txt: the caption of a.png is missing",
        "b.txt: the caption of b.png is empty",
        "c.txt: the caption of c.png is not UTF-8 text",
        "d.txt: the caption of d.png cannot be read: Is a directory",
    ]


def test_other_places_for_captions(make: Make, tmp_path: Path) -> None:
    assert names(make(a__png="", a__caption="one", b__png="", b__TXT="two")) == [("a.png", ["one"]), ("b.png", ["two"])]


def test_two_caption_files_for_one_image_are_refused(make: Make) -> None:
    with pytest.raises(RecipeError, match=r"a\.png: has two caption files, a\.txt and a\.caption; set caption_ext"):
        read_captions(make(a__png="", a__txt="x", a__caption="y"))


def test_two_images_with_one_caption_file_are_a_warning(make: Make) -> None:
    read = collect_captions(make(a__jpg="", a__png="", a__txt="x"))
    assert [(path.name, texts) for path, texts in read.images] == [("a.jpg", ["x"]), ("a.png", ["x"])]
    assert len(read.warnings) == 1
    assert read.warnings[0].endswith("a.png: has the same caption file as a.jpg, a.txt")


def test_a_file_of_templates(make: Make, tmp_path: Path) -> None:
    concept = make(str(tmp_path / "t.txt"), a__png="", b__png="", t__txt="# ours\na <e>\n\n  the <e> \n")
    assert names(concept) == [("a.png", ["a <e>", "the <e>"]), ("b.png", ["a <e>", "the <e>"])]
    assert collect_captions(concept).files == [tmp_path / "t.txt"]
    (tmp_path / "t.txt").write_text("# nothing\n", "utf-8")
    with pytest.raises(RecipeError, match="contains no template"):
        read_captions(concept)


@pytest.mark.parametrize("mark", [",", ";", "\t"])
def test_a_table_in_csv(make: Make, tmp_path: Path, mark: str) -> None:
    rows = ["file_name,text", "b.png,two", 'a.png,"one, and more"', "a.png,uno"]
    text = "\ufeff" + "\r\n".join(rows).replace(",", mark).replace(f"one{mark} and", "one, and")
    concept = make(str(tmp_path / "t.csv"), a__png="", b__png="", t__csv=text)
    assert names(concept) == [("a.png", ["one, and more", "uno"]), ("b.png", ["two"])]


def test_errors_of_a_csv_have_their_line(make: Make, tmp_path: Path) -> None:
    concept = make(str(tmp_path / "t.csv"), a__png="", t__csv="file_name,caption\na.png,\nc.png,x\n")
    problems = [problem.replace(f"{tmp_path}/", "") for problem in collect_captions(concept).problems]
    assert problems[0] == "t.csv:2: a line has a file_name and a caption"
    assert problems[1].startswith("t.csv:3: ")
    (tmp_path / "t.csv").write_text("a.png,x\n", "utf-8")
    assert "the first line names the columns" in collect_captions(concept).problems[0]


def test_a_table_names_images_in_folders_and_may_give_several_captions(make: Make, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "é.png").write_bytes(b"")
    rows = json.dumps({"file_name": "./sub/e\u0301.png", "caption": ["one", " two "]})
    concept = replace(make(str(tmp_path / "m.jsonl"), m__jsonl=rows), recursive=True)
    assert [(path.parent.name, texts) for path, texts in read_captions(concept)] == [("sub", ["one", "two"])]


def test_an_unknown_source_of_captions_is_an_error_with_the_known_ones(make: Make, tmp_path: Path) -> None:
    problem = collect_captions(make(str(tmp_path / "captions.xml"), a__png="")).problems[0]
    assert problem.endswith(
        "captions come from 'beside', 'file-name', a .jsonl, .json, .csv, .parquet or .txt file, or a list of templates"
    )


def test_prefix_and_suffix_are_part_of_every_caption(make: Make) -> None:
    concept = replace(make(("a", "b"), a__png=""), prefix="<e>, ", suffix=", photo")
    assert names(concept) == [("a.png", ["<e>, a, photo", "<e>, b, photo"])]


def test_masks_beside_and_in_a_folder(make: Make, tmp_path: Path) -> None:
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks" / "b.png").write_bytes(b"")
    concept = make(("x",), **{"a__jpg": "", "a-mask__png": "", "b__jpg": ""})
    read = collect_captions(concept)
    assert {image.name: mask.name for image, mask in read.masks.items()} == {"a.jpg": "a-mask.png"}
    assert read.warnings == ["b.jpg has no mask: the loss covers the full image"]
    read = collect_captions(replace(concept, masks=str(tmp_path / "masks")))
    assert {image.name: mask.name for image, mask in read.masks.items()} == {"b.jpg": "b.png"}
    assert collect_captions(replace(concept, masks="none")).masks == {}
    assert "the folder of masks cannot be read" in collect_captions(replace(concept, masks="/nowhere")).problems[0]
    (tmp_path / "a.mask.png").write_bytes(b"")
    assert "a.jpg: has 2 masks" in collect_captions(concept).problems[0]


def test_a_missing_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="cannot be read: No such file"):
        read_captions(Concept(tmp_path / "none", "beside", 1))
