"""What is no recipe is refused at once with a message, whatever it is."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from pivotune.pipeline.errors import RecipeError
from pivotune.pipeline.recipe.load import load_recipe

Write = Callable[[bytes], Path]


def refusal(path: str | Path) -> str:
    """The one message with which a recipe is refused."""
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    assert len(caught.value.problems) == 1
    return caught.value.problems[0]


def test_a_folder_is_no_recipe(good: Path) -> None:
    assert "is a folder; give a .toml file; recipes in it: good.toml" in refusal(good.parent)


def test_a_pipe_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert "not a regular file" in refusal(tmp_path / "pipe")


def test_a_device_is_no_recipe() -> None:
    assert "not a regular file" in refusal("/dev/zero")


def test_a_missing_file_suggests_a_shipped_recipe() -> None:
    assert "did you mean 'quickstart'?" in refusal("quikstart")
    assert refusal("no/such.toml").endswith("no such file, and no shipped recipe of this name")
    assert "no such file" in refusal("a\0b")


def test_a_broken_link_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "link.toml").symlink_to(tmp_path / "nothing")
    assert "cannot be read: No such file" in refusal(tmp_path / "link.toml")


@pytest.mark.parametrize("content", [b"", b"\n\n", b"# nothing\n", b"\xef\xbb\xbf"])
def test_an_empty_file_is_an_error(written: Write, content: bytes) -> None:
    assert "the recipe is empty" in refusal(written(content))


def test_ten_megabytes_are_not_parsed(written: Write) -> None:
    assert "too large for a recipe: 10.0 MB" in refusal(written(b"a = 1\n" * 1_666_667))


def test_a_megabyte_of_unknown_keys_is_cut_to_a_hundred_problems(written: Write) -> None:
    path = written(b"name = 3\n" + b"".join(b"k%070d = 1\n" % number for number in range(13_000)))
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    assert len(caught.value.problems) == 101
    assert "and more; fix these 100 first" in caught.value.problems[-1]


def test_what_is_not_utf8_is_named_with_its_line(written: Write) -> None:
    assert "recipe.toml:2: not UTF-8 (byte 0xe9)" in refusal(written(b'name = "a"\n# caf\xe9\n'))
    assert "not UTF-8 (UTF-16)" in refusal(written('name = "a"'.encode("utf-16")))


def test_a_byte_order_mark_and_windows_lines_do_no_harm(good: Path) -> None:
    good.write_bytes(b"\xef\xbb\xbf" + good.read_bytes().replace(b"\n", b"\r\n"))
    assert load_recipe(good).name == "good"


@pytest.mark.parametrize(
    "bomb",
    [
        b"a = " + b"[" * 100_000 + b"]" * 100_000,
        b"a = " + b"{a = " * 50_000 + b"1" + b"}" * 50_000,
        b".".join([b"a"] * 300_000) + b" = 1",
        b"[" + b".".join([b"a"] * 300_000) + b"]",
        b"a = " + b"[" * 300 + b"]" * 300,
        b".".join([b"a"] * 900) + b" = 1",
        b"[[" + b".".join([b"a"] * 900) + b"]]",
        b'placeholder = "' + b"\\u0041" * 100 + b'"\nx = ' + b"[" * 17 + b"]" * 17,
    ],
    ids=["lists", "tables", "key", "header", "300 lists", "900 parts", "900 tables", "17 lists"],
)
def test_deep_nesting_is_refused(written: Write, bomb: bytes) -> None:
    assert "nested" in refusal(written(bomb))


def test_a_number_of_thousands_of_digits_is_refused(written: Write) -> None:
    assert "a number has thousands of digits" in refusal(written(b"seed = " + b"9" * 5000))
    assert "the number is too large" in "".join(_problems(written(b"seed = 0x" + b"9" * 5000)))


def test_names_and_values_in_messages_are_cut(written: Write) -> None:
    shown = _problems(written(b'"' + b"k" * 50_000 + b'" = 1\nname = "' + b"n" * 50_000 + b'"\n'))
    assert all(len(problem) < 400 for problem in shown)


def test_control_characters_do_not_reach_the_terminal(written: Write) -> None:
    shown = "".join(_problems(written(b'name = "a\\u001b[31mb"\n"key\\u001b[31m" = 1\n')))
    assert "\x1b" not in shown
    assert "key" in shown


def _problems(path: Path) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    return caught.value.problems
