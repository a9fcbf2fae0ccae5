"""A recipe without problems, for tests to write and to break in one place."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from recipe_text import recipe_text, write_recipe

HERE = Path(__file__).parent
GOOD = recipe_text(
    "good",
    model=f"base = {json.dumps((HERE / 'sd1').as_posix())}",
    concepts=f"[[concept]]\nimages = {json.dumps((HERE / 'images').as_posix())}",
    embeddings='[[embedding]]\nplaceholder = "<emblem>"',
    train="steps = 10",
)


@pytest.fixture
def good(tmp_path: Path) -> Path:
    """The path of a recipe without a problem."""
    return write_recipe(tmp_path / "good.toml", GOOD)


@pytest.fixture
def written(tmp_path: Path) -> Callable[[bytes], Path]:
    """Writes bytes as a recipe and gives its path."""

    def write(content: bytes) -> Path:
        path = tmp_path / "recipe.toml"
        path.write_bytes(content)
        return path

    return write
