"""A dataset's batches: captions drawn and dropped, latents drawn from what the VAE says, mirrored where asked."""

from dataclasses import replace
from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image
from tiny import tiny_vae

from pivotune.pipeline.data.dataset import Dataset, open_dataset
from pivotune.pipeline.recipe.load import load_recipe
from pivotune.pipeline.recipe.model import Recipe

RECIPE = """
name = "tiny"
[model]
base = "micro"
{concepts}
[[stage]]
kind = "train"
steps = 1
"""


def recipe_of(folder: Path, concepts: str = '[[concept]]\nimages = "pictures"') -> Recipe:
    (folder / "recipe.toml").write_text(RECIPE.format(concepts=concepts), "utf-8")
    return load_recipe(folder / "recipe.toml")


@pytest.fixture(scope="module")
def vae():
    torch.manual_seed(0)
    return tiny_vae().eval()


@pytest.fixture
def recipe(tmp_path) -> Recipe:
    """Five noisy pictures of 20x16 with two captions each."""
    (tmp_path / "pictures").mkdir()
    draw = numpy.random.default_rng(0)
    for number in range(5):
        Image.fromarray(draw.integers(0, 255, (20, 16, 3), dtype=numpy.uint8)).save(tmp_path / f"pictures/{number}.png")
        (tmp_path / f"pictures/{number}.txt").write_text(f"a {number}\nthe {number}", "utf-8")
    return recipe_of(tmp_path)


def opened(recipe: Recipe, vae, size: int = 2, **options) -> Dataset:
    return open_dataset(recipe, vae, **{"resolution": 16, "batch_size": size, "seed": 3} | options)


def test_a_batch_has_the_shapes_it_promises(recipe, vae):
    batch = opened(recipe, vae, flip=True).at(0)
    assert batch.latents.shape == (len(batch.captions), 4, 8, 8)
    assert batch.latents.dtype == batch.weight.dtype == batch.sizes.dtype == torch.float32
    assert batch.mask is None
    assert batch.weight.tolist() == [1.0] * len(batch.captions)
    assert batch.prior.tolist() == [False] * len(batch.captions)
    assert batch.sizes.tolist() == [[20.0, 16.0, 2.0, 0.0, 16.0, 16.0]] * len(batch.captions)


def test_a_batch_is_the_same_whatever_was_asked_before(recipe, vae):
    forward, backward = (opened(recipe, vae, flip=True, caption_dropout=0.2) for _ in range(2))
    there = [forward.at(n) for n in range(6)]
    for number in reversed(range(6)):
        batch = backward.at(number)
        assert batch.captions == there[number].captions
        assert torch.equal(batch.latents, there[number].latents)


def test_latents_are_drawn_from_what_the_vae_says(recipe, vae):
    """Shown often, a picture's latents have the mean and deviation of the VAE's answer, scaled."""
    dataset = opened(recipe, vae, size=5)
    drawn = [batch.latents[batch.examples.index(2)] for batch in map(dataset.at, range(400))]
    picture = Image.open(dataset.examples[2].picture).convert("RGB").crop((0, 2, 16, 18))
    values = torch.from_numpy(numpy.asarray(picture) / numpy.float32(127.5) - 1).permute(2, 0, 1)
    with torch.no_grad():
        told = vae.encode(values.unsqueeze(0)).latent_dist
    mean, deviation = (part[0] * vae.config.scaling_factor for part in (told.mean, told.std))
    found = torch.stack(drawn)
    assert ((found.mean(0) - mean).abs() / deviation).max() < 5 / 400**0.5
    assert (found.std(0) / deviation - 1).abs().max() < 0.25


def test_captions_are_drawn_and_dropped(recipe, vae):
    dataset = opened(recipe, vae, size=5, caption_dropout=0.3)
    captions = [caption for n in range(200) for caption in dataset.at(n).captions]
    said = [caption.split()[0] for caption in captions if caption]
    assert said.count("a") / len(said) == pytest.approx(0.5, abs=0.06)
    assert captions.count("") / len(captions) == pytest.approx(0.3, abs=0.05)


def test_each_picture_has_a_caption_of_its_own(recipe, vae):
    dataset = opened(recipe, vae, size=3)
    for number in range(10):
        batch = dataset.at(number)
        assert [int(caption.split()[1]) for caption in batch.captions] == list(batch.examples)


def test_flips_come_only_where_asked_and_half_the_time(recipe, vae):
    plain, flipped = opened(recipe, vae, size=1), opened(recipe, vae, size=1, flip=True)
    same = [torch.equal(plain.at(n).latents, flipped.at(n).latents) for n in range(200)]
    assert sum(same) / len(same) == pytest.approx(0.5, abs=0.1)


def test_repeats_show_a_concept_more_often(recipe, vae):
    more = replace(recipe, concepts=(replace(recipe.concepts[0], repeats=3),))
    dataset = opened(more, vae, size=4)
    shown = [example for n in range(dataset.batches_per_epoch) for example in dataset.at(n).examples]
    assert sorted(shown) == sorted([*range(5)] * 3)
