"""Calls the command line as a user does, in this process."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from recipe_text import recipe_text, write_recipe

from pivotune.pipeline.cli.main import main

RECIPES = Path(__file__).parents[1] / "recipe"


@dataclass(frozen=True)
class Called:
    """The exit code of a call and both streams."""

    code: int
    out: str
    err: str


Call = Callable[..., Called]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """Runs `pivotune` with these arguments; exceptions other than SystemExit are raised."""

    def run(*arguments: object) -> Called:
        monkeypatch.setattr(sys, "argv", ["pivotune", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            main()
        streams = capsys.readouterr()
        return Called(int(caught.value.code or 0), streams.out, streams.err)

    return run


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """A recipe without problems, for a model folder without weights."""
    text = recipe_text(
        "mine",
        model=f"base = {json.dumps(str(RECIPES / 'sd1'))}",
        concepts=f"[[concept]]\nimages = {json.dumps(str(RECIPES / 'images'))}",
        embeddings='[[embedding]]\nplaceholder = "<emblem>"',
        train="steps = 10",
    )
    return write_recipe(tmp_path / "mine.toml", text)
