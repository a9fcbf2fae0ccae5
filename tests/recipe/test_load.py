"""A recipe that is right: defaults, paths, and the way to JSON and back."""

from __future__ import annotations

import json
import math
from pathlib import Path

import jsonschema
import pytest

from pivotune import schemas
from pivotune.pipeline.errors import RecipeError
from pivotune.pipeline.recipe.document import shipped
from pivotune.pipeline.recipe.intervals import Every, parse_interval
from pivotune.pipeline.recipe.load import load_recipe, recipe_as_json, recipe_from_json
from pivotune.pipeline.recipe.options import OptimizerOptions

HERE = Path(__file__).parent


def test_defaults_are_those_of_the_schema(good: Path) -> None:
    recipe = load_recipe(good)
    assert (recipe.seed, recipe.device, recipe.threads, recipe.description) == (0, "auto", None, "")
    assert recipe.model.dtype == "float32"
    assert recipe.embeddings[0].stop_after == Every(0.0, "never")
    assert recipe.embeddings[0].initial_text == "*"
    train = recipe.stages[2].options
    assert train.learning_rate == 5e-3
    assert train.optimizer == OptimizerOptions("adamw", {"betas": (0.9, 0.999), "eps": 1e-8}, 0.0)
    assert train.lora == ()
    assert recipe.samples.prompts == ("a photo of <emblem>",)
    assert recipe.stages[3].options.targets == ("a1111", "comfyui", "diffusers")


def test_alpha_defaults_to_the_rank(good: Path) -> None:
    assert load_recipe(good, ["train.lora={rank = 7}"]).stages[2].options.lora[0].alpha == 7
    assert load_recipe(good, ["train.lora={rank = 7, alpha = 2}"]).stages[2].options.lora[0].alpha == 2


def test_an_empty_list_of_prompts_means_no_images(good: Path) -> None:
    assert load_recipe(good, ["samples.prompts=[]"]).samples.prompts == ()


def test_paths_start_at_the_recipe(good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    folder = good.parent
    recipe = load_recipe(good, ["concept.images=pics/../a", "concept.captions=c.jsonl", "model.base=./m"])
    assert recipe.concepts[0].images == folder / "a"
    assert recipe.concepts[0].captions == str(folder / "c.jsonl")
    assert recipe.model.base == str(folder / "m")
    (folder / "owner").mkdir()
    (folder / "owner" / "name").mkdir()
    assert load_recipe(good, ["model.base=owner/name"]).model.base == str(folder / "owner" / "name")
    assert load_recipe(good, ["model.base=other/name"]).model.base == "other/name"
    assert load_recipe(good, ["model.base=micro"]).model.base == "micro"
    assert load_recipe(good, ["concept.images=~/x"]).concepts[0].images == Path.home() / "x"


@pytest.mark.parametrize("name", sorted(shipped()))
def test_json_and_back_is_the_same_recipe(name: str) -> None:
    recipe = load_recipe(name)
    document = json.loads(json.dumps(recipe_as_json(recipe)))
    assert list(schemas.violations(document)) == []
    assert recipe_from_json(document, recipe.path) == recipe


@pytest.mark.parametrize(
    "text", ["never", "500 steps", "1 step", "10epochs", "0.5 hours", "30 minutes", "60 %", "7 seconds", "9 own steps"]
)
def test_stop_rules_come_back(text: str) -> None:
    rule = parse_interval(text, own=True)
    assert parse_interval(str(rule), own=True) == rule
    assert not any(schemas.violations({**minimal(), "embedding": [{"placeholder": "x", "stop_after": str(rule)}]}))


def test_stop_rules_in_plain_embeddings() -> None:
    assert parse_interval("60 %") == Every(60.0, "percent")
    assert parse_interval("1 step") == Every(1.0, "steps")
    assert parse_interval("0.5 hours") == Every(0.5, "hours")


def minimal() -> dict[str, object]:
    return {"name": "x", "model": {"base": "micro"}, "stage": [{"kind": "inject"}]}


@pytest.mark.parametrize("name", ["a", "A-1_b.c", "x" * 64])
def test_good_names(good: Path, name: str) -> None:
    assert load_recipe(good, [f'name="{name}"']).name == name


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a\\\\b", "a b", "a.", "-a", "é", "x" * 65, "a\\n"])
def test_bad_names(good: Path, name: str) -> None:
    with pytest.raises(RecipeError, match="is not a name made of"):
        load_recipe(good, [f'name="{name}"'])


@pytest.mark.parametrize("device", ["auto", "cpu", "mps", "cuda", "cuda:0", "xpu:12"])
def test_good_devices(good: Path, device: str) -> None:
    assert load_recipe(good, [f"device={device}"]).device == device


@pytest.mark.parametrize("device", ["gpu", "cuda:", "cpu:0", "cuda:x", "CUDA", "cuda:1\\n"])
def test_bad_devices(good: Path, device: str) -> None:
    with pytest.raises(RecipeError, match="device"):
        load_recipe(good, [f'device="{device}"'])


def test_plain_json_schema_agrees_on_what_ships() -> None:
    """An editor applies the schema without our stricter whole numbers."""
    import tomli

    validator = jsonschema.Draft7Validator(schemas.schema("editor.json"))
    for path in shipped().values():
        assert list(validator.iter_errors(tomli.loads(path.read_text("utf-8")))) == []


def test_no_number_of_a_resolved_recipe_is_lost() -> None:
    document = recipe_as_json(load_recipe("quickstart"))
    assert all(math.isfinite(value) for value in numbers(document))


def numbers(value: object) -> list[float]:
    if isinstance(value, dict):
        return [number for item in value.values() for number in numbers(item)]
    if isinstance(value, list):
        return [number for item in value for number in numbers(item)]
    return [value] if isinstance(value, (int, float)) else []
