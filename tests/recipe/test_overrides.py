"""`--set key=value`: where it may point, how its value is read, and the message when it is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pivotune.pipeline.checks.recipe import check_recipe
from pivotune.pipeline.errors import RecipeError
from pivotune.pipeline.recipe.load import load_recipe, recipe_as_json


def at(path: Path, override: str, *keys: Any) -> Any:
    """A value of the recipe after one override."""
    value: Any = recipe_as_json(load_recipe(path, [override]))
    for key in keys:
        value = value[key]
    return value


def test_places(good: Path) -> None:
    assert at(good, "seed=3", "seed") == 3
    assert at(good, "model.dtype=bfloat16", "model", "dtype") == "bfloat16"
    assert at(good, "train.steps=77", "stage", 2, "steps") == 77
    assert at(good, "train.1.steps=79", "stage", 2, "steps") == 79
    assert at(good, "stage.3.steps=78", "stage", 2, "steps") == 78
    assert at(good, "train.optimizer.eps=1e-6", "stage", 2, "optimizer", "eps") == 1e-6
    assert at(good, "embedding.tokens=4", "embedding", 0, "tokens") == 4
    assert at(good, "embedding.1.learning_rate.clip_l=0.1", "embedding", 0, "learning_rate") == {"clip_l": 0.1}
    assert at(good, "samples.count=9", "samples", "count") == 9


def test_values_are_toml_and_bare_embeddings_are_texts(good: Path) -> None:
    assert at(good, 'device="cpu"', "device") == at(good, "device=cpu", "device") == "cpu"
    assert at(good, "train.lora={ rank = 3 }", "stage", 2, "lora", 0, "alpha") == 3
    assert at(good, 'export.targets=["kohya"]', "stage", 3, "targets") == ["kohya"]
    assert at(good, "description=a = b", "description") == "a = b"
    assert at(good, "description=1\nseed=2", "seed") == 0
    assert at(good, "embedding.train=false", "embedding", 0, "train") is False


def test_later_ones_win(good: Path) -> None:
    assert load_recipe(good, ["seed=1", "seed=2"]).seed == 2


@pytest.mark.parametrize(
    ("override", "embeddings"),
    [
        ("steps", "--set steps: is not of the form KEY=VALUE, for example train.steps=10"),
        ("=3", "is not of the form KEY=VALUE"),
        ("sede=3", "--set sede=3: unknown key 'sede'; did you mean 'seed'?"),
        ("trian.steps=3", "did you mean 'train'?"),
        ("rescale.to=mean", "the recipe has no rescale stage; its stages: tokenize, inject, train, export"),
        ("polish.to=mean", "embeddings_from, stage, checkpoint, samples; its stages: tokenize, inject, train, export"),
        ("stage.9.steps=3", "no item 9; the recipe has 4 (counted from 1)"),
        ("stage.0.steps=3", "no item 0"),
        ("stage.steps=3", "put a number before 'steps'"),
        ("name.x=3", "'name' is not a table"),
        ("seed.x=3", "expected a whole number, got a table"),
        ("train.step=3", "--set train.step=3: unknown key 'step'; did you mean 'steps'?"),
        ("train..steps=3", "--set train..steps=3: the key has an empty part; did you mean train.steps?"),
        ("train.optimzer.eps=1", "--set train.optimzer.eps=1: unknown key 'optimzer'; did you mean 'optimizer'?"),
        ("train.steps=many", "--set train.steps=many: 'many' is not a whole number of steps"),
        ("train.steps=nan", "--set train.steps=nan: nan is not a finite number"),
        ("train.learning_rate=[[[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]]]", "nested more than 16 levels deep"),
        ("train.2.steps=3", "stages of kind 'train': 1; write train.1.steps"),
        ("a.b.c", "is not of the form"),
    ],
)
def test_a_wrong_one_is_named_in_the_message(good: Path, override: str, embeddings: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(good, [override])
    assert len(caught.value.problems) == 1
    assert embeddings in caught.value.problems[0]
    assert caught.value.problems[0].startswith(str(good))


def test_every_wrong_one_is_named_and_what_else_is_wrong_too(good: Path) -> None:
    wrong = ["trian.steps=3", "train..steps=3", ".steps=3", "train.=3", "train.warmup_steps=1.5", "seed=x"]
    assert [problem.shown("") for problem in check_recipe(good, wrong).problems] == [
        "--set trian.steps=3: unknown key 'trian'; did you mean 'train'?",
        "--set train..steps=3: the key has an empty part; did you mean train.steps?",
        "--set .steps=3: the key has an empty part; did you mean steps?",
        "--set train.=3: the key has an empty part; did you mean train?",
        "--set seed=x: expected a whole number, got 'x'",
        "--set train.warmup_steps=1.5: 1.5 is neither a whole number of steps nor a share below 1",
    ]


def test_the_file_is_not_changed(good: Path) -> None:
    before = good.read_bytes()
    load_recipe(good, ["seed=3"])
    assert good.read_bytes() == before


def test_two_stages_of_a_kind_need_a_number() -> None:
    with pytest.raises(RecipeError, match=r"stages of kind 'train': 2; write train\.1\.steps or train\.2\.steps"):
        load_recipe("pivotal", ["train.steps=3"])
    stages = [stage for stage in load_recipe("pivotal", ["train.2.steps=3"]).stages if stage.kind == "train"]
    assert stages[0].options.steps != 3
    assert stages[1].options.steps == 3


def test_a_folder_does_not_hide_a_shipped_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "quickstart").mkdir()
    monkeypatch.chdir(tmp_path)
    assert load_recipe("quickstart").name == "quickstart"
