"""The point of it all: the exported embedding draws the thing it was trained, far better than its initial text does."""

import json
from statistics import mean, stdev

import numpy
import pytest
import torch
from PIL import Image
from projects import run_recipe

from pivotune.converters.safetensors_file import read as read_safetensors
from pivotune.pipeline.checks.recipe import check_recipe
from pivotune.pipeline.recipe.document import shipped
from pivotune.pipeline.recipe.load import load_recipe
from pivotune.recipes.micro.grammar import Scene
from pivotune.recipes.micro.images import THINGS
from pivotune.recipes.micro.judge import HIT, distance_to_drawing

SEEDS = 8


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The quick start with half its steps, and one prompt at eight seeds."""
    prompts = 'samples.prompts=["a photo of <my-emblem> on a yellow background"]'
    changes = [f"samples.count={SEEDS}", "samples.steps=14", "train.steps=100", "device='cpu'"]
    recipe = load_recipe("quickstart", [prompts, *changes])
    before = torch.get_num_threads()
    yield run_recipe(recipe, out=tmp_path_factory.mktemp("learning") / "run", progress=lambda text: None, bar=False)
    torch.set_num_threads(before)


def distances(folder, when):
    """How far each image is from the thing as it is drawn, 0 to 255, in the order of the seeds."""
    manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
    paths = [row["path"] for row in manifest["images"] if row["when"] == when]
    scene = Scene(THINGS["emblem"], (250, 232, 150))
    return [distance_to_drawing(numpy.asarray(Image.open(folder / path).convert("RGB")), scene) for path in paths]


def test_the_exported_embedding_draws_its_concept_better_than_its_initial_text(run):
    before, after = distances(run.folder, "before"), distances(run.folder, "after")
    assert len(before) == len(after) == SEEDS
    gains = [first - second for first, second in zip(before, after, strict=True)]
    noise = stdev(gains) / SEEDS**0.5  # of the mean gain, over seeds
    assert mean(gains) > 6 * noise, (before, after)
    assert mean(after) < 0.5 * mean(before), (before, after)
    assert sum(distance < HIT for distance in after) >= SEEDS * 0.6, after
    assert sum(distance < HIT for distance in before) <= SEEDS * 0.2, before


def test_the_embedding_has_changed_and_its_norm_is_recorded(run):
    manifest = json.loads((run.folder / "manifest.json").read_text("utf-8"))
    [embedding] = manifest["embeddings"]
    vectors = embedding["encoders"]["clip_l"]
    assert all(way > 0.5 * norm for way, norm in zip(vectors["distance"], vectors["norm_before"], strict=True))
    tensors, _ = read_safetensors(run.folder / "exports" / "quickstart_embeddings" / "my-emblem.safetensors")
    assert [raw.shape[0] for raw in tensors.values()] == [len(vectors["distance"])]


def test_the_shipped_recipe_has_no_problems(run):
    checked = check_recipe(shipped()["quickstart"])
    assert (checked.problems, checked.failed) == ([], False)
    manifest = json.loads((run.folder / "manifest.json").read_text("utf-8"))
    assert manifest["warnings"] == []
    assert "usual norm" not in run.summary


def test_a_small_model_uses_one_thread(run):
    assert json.loads((run.folder / "manifest.json").read_text("utf-8"))["environment"]["threads"] == 1
