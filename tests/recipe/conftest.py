"""A recipe that is right, to be written somewhere and made wrong in one place."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

HERE = Path(__file__).parent
GOOD = f"""
name = "good"
[model]
base = {json.dumps((HERE / "sd1").as_posix())}
[[concept]]
images = {json.dumps((HERE / "images").as_posix())}
[[embedding]]
placeholder = "<emblem>"
[[stage]]
kind = "tokenize"
[[stage]]
kind = "inject"
[[stage]]
kind = "train"
steps = 10
[[stage]]
kind = "export"
"""


@pytest.fixture
def good(tmp_path: Path) -> Path:
    """The path of a recipe without a problem."""
    path = tmp_path / "good.toml"
    path.write_text(GOOD, "utf-8")
    return path


@pytest.fixture
def written(tmp_path: Path) -> Callable[[bytes], Path]:
    """Writes bytes as a recipe and gives its path."""

    def write(content: bytes) -> Path:
        path = tmp_path / "recipe.toml"
        path.write_bytes(content)
        return path

    return write
