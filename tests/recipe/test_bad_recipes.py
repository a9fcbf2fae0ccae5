"""Each `bad/<name>.toml` is refused with exactly the messages of `bad/<name>.txt`."""

from __future__ import annotations

from pathlib import Path

import pytest

from pivotune.pipeline.checks.recipe import check_recipe

HERE = Path(__file__).parent
BAD = sorted((HERE / "bad").glob("*.toml"))
ONLY_WARNED = {"containing-embeddings"}


def test_there_are_bad_recipes() -> None:
    assert len(BAD) >= 25
    assert {path.stem for path in BAD} == {path.stem for path in (HERE / "bad").glob("*.txt")}


@pytest.mark.parametrize("path", BAD, ids=lambda path: path.stem)
def test_a_bad_recipe_is_refused_with_all_its_problems(path: Path) -> None:
    checked = check_recipe(path)
    shown = [problem.shown(path.name).removeprefix(path.name).replace(f"{HERE}/", "") for problem in checked.problems]
    assert shown == path.with_suffix(".txt").read_text("utf-8").splitlines()
    assert checked.failed == (path.stem not in ONLY_WARNED)


@pytest.mark.parametrize("path", BAD, ids=lambda path: path.stem)
def test_every_problem_names_a_line_that_there_is(path: Path) -> None:
    lines = len(path.read_text("utf-8").splitlines())
    for problem in check_recipe(path).problems:
        assert 0 <= problem.line <= lines
        assert problem.line or path.stem == "only-comments"
