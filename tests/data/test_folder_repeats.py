"""Folders named as for kohya's scripts: their repeats and classes."""

from __future__ import annotations

from collections import Counter

import pytest
from data_of import dataset_of, recipe_of
from recipe_text import noise, recipe_text, write_recipe

from pivotune.pipeline.checks.recipe import check_recipe
from pivotune.pipeline.checks.survey import survey, survey_images
from pivotune.pipeline.data.captions import collect_captions


@pytest.fixture
def kohya(tmp_path):
    """One image with three repeats, and two with one, of which one has a caption file."""
    noise(tmp_path / "images/3_<cat> ring/a.png", seed=1)
    noise(tmp_path / "images/1_dog/b.png", seed=2)
    noise(tmp_path / "images/1_dog/c.png", seed=3)
    (tmp_path / "images/1_dog/c.txt").write_text("a <cat>", "utf-8")
    return tmp_path


def test_an_epoch_has_the_repeats_and_the_classes_are_captions(kohya, vae):
    recipe = recipe_of(kohya, {"folder_repeats": True, "repeats": 2}, cache_latents="memory")
    dataset = dataset_of(recipe, vae, size=5)
    assert dataset.batches_per_epoch == 2
    captions = Counter(caption for number in range(2) for caption in dataset.captions(number))
    assert captions == {"<cat> ring": 6, "dog": 2, "a <cat>": 2}
    counted = survey(recipe, survey_images(recipe), 16, 5)
    assert (counted.shown, counted.batches, counted.concepts[0].shown) == (10, 2, 10)
    assert [path.name for path in collect_captions(recipe.concepts[0]).files] == ["c.txt"]


def test_repeats_are_shares_where_the_recipe_gives_the_size_of_an_epoch(kohya, vae):
    recipe = recipe_of(kohya, {"folder_repeats": True, "images_per_epoch": 5}, cache_latents="memory")
    dataset = dataset_of(recipe, vae, size=5)
    captions = Counter(caption for number in range(4) for caption in dataset.captions(number))
    assert captions == {"<cat> ring": 12, "dog": 4, "a <cat>": 4}


def test_balance_counts_the_repeats(tmp_path, vae):
    for name in ("3_<a>", "1_<b>"):
        noise(tmp_path / f"images/{name}/x.png", seed=len(name))
    embeddings = "".join(f'[[embedding]]\nplaceholder = "{name}"\n' for name in ("<a>", "<b>"))
    recipe = recipe_of(tmp_path, {"folder_repeats": True}, balance="embeddings", cache_latents="memory")
    text = (tmp_path / "recipe.toml").read_text("utf-8")
    write_recipe(tmp_path / "recipe.toml", text.replace("[[stage]]", embeddings + "[[stage]]", 1))
    recipe = check_recipe(tmp_path / "recipe.toml").recipe
    assert survey(recipe, survey_images(recipe), 16, 2).embeddings == {"<a>": (1, 3.0), "<b>": (1, 3.0)}


def shown(folder, concept):
    """The problems of a recipe with this concept."""
    text = recipe_text(concepts=f"[[concept]]\n{concept}", embeddings='[[embedding]]\nplaceholder = "<cat>"')
    return [problem.text for problem in check_recipe(write_recipe(folder / "recipe.toml", text)).problems]


def test_names_that_are_not_used_are_a_warning_with_the_key(kohya):
    one = 'images = "images/3_<cat> ring"\ncaptions = ["<cat>"]\n'
    (warning,) = shown(kohya, one)
    assert warning.startswith(
        "the name of 3_<cat> ring is not used (3 repeats, class '<cat> ring'); set folder_repeats"
    )
    assert shown(kohya, one + "folder_repeats = false") == []
    assert shown(kohya, one + "repeats = 3") == []
    assert shown(kohya, one + "folder_repeats = true") == []
    noise(kohya / "images/d.png")
    assert any("the name of 1_dog" in text for text in shown(kohya, 'images = "images"\ncaptions = ["<cat>"]'))


def test_folders_alone_name_the_key(kohya):
    errors = shown(kohya, 'images = "images"\ncaptions = ["<cat>"]')
    assert "2 folders; folder_repeats = true includes them with the repeats in their names" in errors[0]


def test_batches_are_compared_with_the_repeated_epoch(kohya):
    keys = 'images = "images"\nrecursive = true\nfolder_repeats = {}\ncaptions = ["<cat>"]'
    assert shown(kohya, keys.format("true")) == []
    text = (kohya / "recipe.toml").read_text("utf-8")
    write_recipe(kohya / "recipe.toml", text.replace("steps = 3", "steps = 3\nbatch_size = 5"))
    assert check_recipe(kohya / "recipe.toml").problems == []
    write_recipe(kohya / "recipe.toml", text.replace("steps = 3", "steps = 3\nbatch_size = 6"))
    assert "larger than an epoch of 5 images" in check_recipe(kohya / "recipe.toml").problems[0].text
