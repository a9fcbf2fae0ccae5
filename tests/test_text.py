"""Text for messages: numbers with their nouns, and that every count in a message has the right one."""

from __future__ import annotations

import ast
import itertools
import re
from pathlib import Path

import pytest

from pivotune.pipeline.text import count_of, first_few, first_lines

ROOT = Path(__file__).parents[1]
# Part of the text after a count: why it is never 1.
PLURAL = {
    " captions ": "20 or more", " masks, ": "two or more", " embeddings, ": "a span of several",
    " embeddings; ": "more than one",
    " encoders; ": "not one", " tensors match no module": "more than a limit", " characters)": "longer than a limit",
    " tokens, but ": "a vocabulary", " weights (": "of a module", " bytes instead of": "an internal error",
    " embeddings in the file": "fewer are used",
}  # fmt: skip


@pytest.mark.parametrize(
    ("count", "nouns", "text"),
    [
        (0, ("image",), "0 images"), (1, ("image",), "1 image"), (1234, ("image",), "1,234 images"),
        (1.0, ("time",), "1 time"), (2.5, ("time",), "2.5 times"), (2, ("batch", "batches"), "2 batches"),
    ],
)  # fmt: skip
def test_a_count_has_the_noun_that_fits(count: float, nouns: tuple[str, ...], text: str) -> None:
    assert count_of(count, *nouns) == text


def test_the_rest_of_a_list_is_counted() -> None:
    assert first_few("abc", 2) == "a, b and 1 more"
    assert first_few("abcd", 2, "file") == "a, b and 2 more files"
    assert first_lines(["a", "b"], 1, "folder of images", "folders of images") == ["a", "and 1 more folder of images"]
    assert first_few("ab", 2, "file") == "a, b"


@pytest.mark.parametrize("package", ["pipeline", "converters", "schemas"])
def test_no_message_writes_a_plural_after_a_length(package: str) -> None:
    found = []
    for path in sorted((ROOT / package).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            parts = node.values if isinstance(node, ast.JoinedStr) else []
            for number, text in itertools.pairwise(parts):
                is_length = isinstance(number, ast.FormattedValue) and "len(" in ast.unparse(number.value)[:5]
                if is_length and isinstance(text, ast.Constant) and re.match(r" (more )?[a-z]+s\b", text.value):
                    found += [f"{path}:{text.lineno}: {text.value}"] * (not text.value.startswith(tuple(PLURAL)))
    assert found == []
