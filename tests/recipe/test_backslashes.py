"""Windows paths in double quotes: the message shows the line as it should be."""

from __future__ import annotations

from pathlib import Path

import pytest
import tomli

from pivotune.pipeline.checks.recipe import check_recipe
from pivotune.pipeline.recipe.backslashes import advice


def error(folder: Path, line: str, table: str = "[[concept]]") -> str:
    """The first error of a recipe with this line, which is its seventh."""
    text = f'name = "x"\n\n[model]\nbase = "micro"\n\n{table}\n{line}\n'
    (folder / "recipe.toml").write_text(text, "utf-8")
    return check_recipe(folder / "recipe.toml").problems[0].shown("r")


@pytest.mark.parametrize(
    ("line", "cause"),
    [
        (r'images = "C:\Users\me\images"', "invalid TOML at column 15: invalid hex value"),
        (r'images = "C:\data\cat"', "invalid TOML at column 15: unescaped '\\' in a string"),
        (r'images = "\\server\share\cat"', "invalid TOML at column 21: unescaped '\\' in a string"),
        (r'images = "my\cat"', "invalid TOML at column 15: unescaped '\\' in a string"),
        (r'images = "D:\new\training"', r"concept.1.images: read as 'D:\new\training'"),
        (r'images = "C:\\data\new"', r"concept.1.images: read as 'C:\\data\new'"),
        (r'images = "sub\new"', r"concept.1.images: read as 'sub\new'"),
        (r'images = "C:\x61bc"', "concept.1.images: read as 'C:abc'"),
        (r'captions = "D:\train\t.jsonl"', r"concept.1.captions: read as 'D:\train\t.jsonl'"),
    ],
)
def test_a_path_with_backslashes_is_shown_in_single_quotes_and_with_slashes(tmp_path, line, cause):
    shown = error(tmp_path, line)
    assert shown.startswith(f"r:7: {cause}: in double quotes a backslash begins an escape; write ")
    single, slashes = shown.partition("; write ")[2].split(", or ")
    key, path = next(iter(tomli.loads(single).items()))
    assert single == f"{key} = '{path}'"
    assert tomli.loads(slashes) == {key: path.replace("\\", "/")}
    raw = line.split('"')[1]
    assert path == (raw if raw.startswith("\\\\") else raw.replace("\\\\", "\\"))


def test_a_backslash_before_the_last_quote_and_several_paths(tmp_path):
    shown = error(tmp_path, r'images = "C:\data\"')
    assert shown.endswith(r"""write images = 'C:\data\', or images = "C:/data/" """.rstrip())
    shown = error(tmp_path, r'parts = ["C:\a", "D:\b"]  # mine', "[x]")
    assert r"""write parts = ['C:\a', 'D:\b']  # mine, or parts = ["C:/a", "D:/b"]  # mine""" in shown


def test_other_texts_with_backslashes_have_no_slashes(tmp_path):
    shown = error(tmp_path, r'captions = ["saber \(fate\), red"]')
    assert shown.endswith(r"write captions = ['saber \(fate\), red']")


def test_a_quote_inside_is_kept(tmp_path):
    line = error(tmp_path, r'''images = "C:\me's"''').partition("; write ")[2].split(", or ")[0]
    assert tomli.loads(line) == {"images": r"C:\me's"}


@pytest.mark.parametrize(
    "line",
    [
        r'images = "C:\\data\\new"', r"images = 'C:\data\new'", 'images = "C:/data/new"', r'suffix = "\n"',
        r'captions = ["a\nb"]', r'prefix = "D:\t"',
    ],
)  # fmt: skip
def test_correct_lines_are_not_refused(tmp_path, line):
    assert "backslash" not in error(tmp_path, line)


def test_lines_without_such_a_text_have_no_advice():
    assert [advice(line) for line in ("x = 1", r"x = 'a\b'", r'x = """a\b"""', 'x = "a"')] == ["", "", "", ""]


def test_settings_of_an_embedding_in_its_folder(tmp_path):
    for name, line in (("cat", r'base = "C:\Users\cat.pt"'), ("dog", r'base = "D:\new\tom.pt"')):
        (tmp_path / f"things/{name}").mkdir(parents=True)
        (tmp_path / f"things/{name}/embedding.toml").write_text(line, "utf-8")
    error(tmp_path, 'folders = "things"', "[[stage]]\nkind = 'tokenize'\n[[embeddings_from]]")
    shown = [problem.text for problem in check_recipe(tmp_path / "recipe.toml").problems]
    line = """write base = 'C:\\Users\\cat.pt', or base = "C:/Users/cat.pt"\n""".strip()
    assert any(text.endswith(line) for text in shown), shown
    assert any(text.startswith(r"read as 'D:\new\tom.pt': write a path with backslashes in single") for text in shown)
