"""Differences between two runs, a line each, and what differs is in the line."""

from __future__ import annotations

import re

import pytest
from projects import make_project, run_project, run_recipe

from pivotune.pipeline.recipe.load import load_recipe
from pivotune.pipeline.run.diff import describe_change, difference_lines, input_differences

PROMPTS = [f"a photo of <cat> number {number}" for number in range(9)]
OLD, NEW = "a" * 64, "b" * 64


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (100, 200, "100, now 200"),
        (None, [1, 2], "nothing, now [1, 2]"),
        (["a", "b"], ["a"], "['a', 'b'], now ['a']"),
        (PROMPTS, [*PROMPTS[1:], "x"], f"removed {PROMPTS[0]}; added x"),
        (PROMPTS[:1], PROMPTS, "added " + ", ".join(PROMPTS[1:5]) + " and 4 more"),
        (PROMPTS, PROMPTS[::-1], "the entries' order or options"),
        (PROMPTS, PROMPTS * 2, "9 entries, now 18"),
        ([{"placeholder": "<cat>", "initial_text": "x" * 60}], [], "removed <cat>"),
        ("x" * 100 + "old" + "y" * 100, "x" * 100 + "new" + "y" * 100,
         f"…{'x' * 12}old{'y' * 45}…, now …{'x' * 12}new{'y' * 45}…"),
        ("x" * 70, "x" * 70 + "y", f"…{'x' * 12}, now …{'x' * 12}y"),
        (OLD, NEW, "aaaaaaaaaaaa…, now bbbbbbbbbbbb…"),
    ],
)  # fmt: skip
def test_differences_are_shown_however_long_the_values_are(old, new, expected):
    assert describe_change(old, new) == expected


def of_files(files: dict[str, str], **more: object) -> dict[str, object]:
    return {"data": {"files": files, "images": len(files), **more}}


def test_files_are_counted_and_derived_differences_left_out():
    old = of_files({"0.png": OLD, "1.png": OLD, "0.txt": OLD}, coverage={"<cat>": 1.0}, captions=["a <cat>"])
    files = {"0.png": NEW, "0.txt": NEW, **{f"{number}.PNG": OLD for number in range(5)}}
    found = input_differences(old, of_files(files, coverage={"<cat>": 0.5}, captions=["a"]))
    assert difference_lines(found, 20) == [
        "data: 5 images added (0.PNG, 1.PNG, 2.PNG, 3.PNG and 1 more), 1 removed (1.png), 1 changed (0.png)",
        "data: 1 file changed (0.txt)",
    ]


def test_a_difference_of_coverage_alone_is_shown():
    found = input_differences(of_files({}, coverage={"<cat>": 1.0}), of_files({}, coverage={"<cat>": 0.5}))
    assert difference_lines(found, 20) == ["data.coverage.<cat>: 1.0, now 0.5"]


def test_of_many_differences_the_rest_is_counted():
    old, new = ({"recipe": {str(number): value for number in range(30)}} for value in (1, 2))
    lines = difference_lines(input_differences(old, new), 20)
    assert (len(lines), lines[19:]) == (21, ["recipe.19: 1, now 2", "and 10 more"])


def test_a_run_that_loads_what_fits_lists_what_differs(tmp_path):
    path = make_project(tmp_path, train="lora = { rank = 2 }")
    source = run_project(path, tmp_path / "source").folder
    (tmp_path / "images/0.txt").write_text("one <cat>", "utf-8")
    (tmp_path / "images/3.png").write_bytes((tmp_path / "images/2.png").read_bytes())
    (tmp_path / "images/3.txt").write_text("a <cat>", "utf-8")
    messages: list[str] = []
    recipe = load_recipe(path, ["train.steps=1", "train.lora.rank=4"])
    run_recipe(recipe, out=tmp_path / "run", progress=messages.append, bar=False, source=source)
    (shown_lines,) = (line.splitlines() for line in messages if line.startswith("loading what fits from"))
    assert shown_lines[1:] == [
        "  recipe.stage.3.steps: 3, now 1",
        "  recipe.stage.3.lora.1.rank: 2, now 4",
        "  recipe.stage.3.lora.1.alpha: 2.0, now 4.0",
        "  data: 1 image added (images/3.png)",
        "  data: 1 file added (images/3.txt), 1 changed (images/0.txt)",
    ]
    (summary,) = (line for line in messages if line.startswith("loaded "))
    assert re.fullmatch(r"loaded 1 of 1 embedding, 0 of [1-9]\d* LoRA weights; new optimizer state", summary)
