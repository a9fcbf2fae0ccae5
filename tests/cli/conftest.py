"""Calls the command line as a user does, in this process."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from pivotune.pipeline.cli.main import main

RECIPES = Path(__file__).parents[1] / "recipe"


@dataclass(frozen=True)
class Called:
    """What a call left: its exit code and both streams."""

    code: int
    out: str
    err: str


Call = Callable[..., Called]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """Runs `pivotune` with these arguments; an exception that is no exit comes through."""

    def run(*arguments: object) -> Called:
        monkeypatch.setattr(sys, "argv", ["pivotune", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            main()
        streams = capsys.readouterr()
        return Called(int(caught.value.code or 0), streams.out, streams.err)

    return run


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """A recipe without a problem, for a model that is only a shell."""
    path = tmp_path / "mine.toml"
    path.write_text(
        f"name = 'mine'\nmodel.base = {json.dumps(str(RECIPES / 'sd1'))}\n"
        f"[[concept]]\nimages = {json.dumps(str(RECIPES / 'images'))}\n"
        '[[embedding]]\nplaceholder = "<emblem>"\n'
        '[[stage]]\nkind = "tokenize"\n[[stage]]\nkind = "inject"\n'
        '[[stage]]\nkind = "train"\nsteps = 10\n[[stage]]\nkind = "export"\n',
        "utf-8",
    )
    return path
