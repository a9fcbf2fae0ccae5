"""Batches of a dataset: sampled and dropped captions, sampled latents, flips."""

from collections import Counter
from dataclasses import replace

import numpy
import pytest
import torch
from data_of import dataset_of, recipe_of
from PIL import Image
from recipe_text import noise

from pivotune.pipeline.errors import StageError


def test_shapes_of_a_batch(five, vae):
    batch = dataset_of(five, vae, flip=True).at(0)
    assert batch.latents.shape == (len(batch.captions), 4, 8, 8)
    assert batch.latents.dtype == batch.weight.dtype == batch.sizes.dtype == torch.float32
    assert batch.mask is None
    assert batch.weight.tolist() == [1.0] * len(batch.captions)
    assert batch.prior.tolist() == [False] * len(batch.captions)
    assert batch.sizes.tolist() == [[20.0, 16.0, 2.0, 0.0, 16.0, 16.0]] * len(batch.captions)


def test_a_batch_does_not_depend_on_earlier_calls(five, vae):
    forward, backward = (dataset_of(five, vae, flip=True, caption_dropout=0.2) for _ in range(2))
    there = [forward.at(n) for n in range(6)]
    for number in reversed(range(6)):
        batch = backward.at(number)
        assert batch.captions == there[number].captions
        assert torch.equal(batch.latents, there[number].latents)


def test_latents_are_sampled_from_the_vaes_distribution(five, vae):
    """Many samples of an image's latents have the mean and deviation of the VAE, scaled."""
    dataset = dataset_of(five, vae, size=5)
    drawn = [batch.latents[batch.examples.index(2)] for batch in map(dataset.at, range(400))]
    image = Image.open(dataset.examples[2].image).convert("RGB").crop((0, 2, 16, 18))
    values = torch.from_numpy(numpy.asarray(image) / numpy.float32(127.5) - 1).permute(2, 0, 1)
    with torch.no_grad():
        distribution = vae.encode(values.unsqueeze(0)).latent_dist
    mean, deviation = (part[0] * vae.config.scaling_factor for part in (distribution.mean, distribution.std))
    found = torch.stack(drawn)
    assert ((found.mean(0) - mean).abs() / deviation).max() < 5 / 400**0.5
    assert (found.std(0) / deviation - 1).abs().max() < 0.25


def test_captions_are_drawn_and_dropped(five, vae):
    dataset = dataset_of(five, vae, size=5, caption_dropout=0.3)
    captions = [caption for n in range(200) for caption in dataset.at(n).captions]
    first_words = [caption.split()[0] for caption in captions if caption]
    assert first_words.count("a") / len(first_words) == pytest.approx(0.5, abs=0.06)
    assert captions.count("") / len(captions) == pytest.approx(0.3, abs=0.05)


def test_each_image_has_a_caption_of_its_own(five, vae):
    dataset = dataset_of(five, vae, size=3)
    for number in range(10):
        batch = dataset.at(number)
        assert [int(caption.split()[1]) for caption in batch.captions] == list(batch.examples)


def test_flips_are_optional_and_half_of_the_images(five, vae):
    plain, flipped = dataset_of(five, vae, size=1), dataset_of(five, vae, size=1, flip=True)
    same = [torch.equal(plain.at(n).latents, flipped.at(n).latents) for n in range(200)]
    assert sum(same) / len(same) == pytest.approx(0.5, abs=0.1)


def test_repeats_sample_a_concept_more_often(five, vae):
    more = replace(five, concepts=(replace(five.concepts[0], repeats=3),))
    dataset = dataset_of(more, vae, size=4)
    shown = [example for n in range(dataset.batches_per_epoch) for example in dataset.at(n).examples]
    assert sorted(shown) == sorted([*range(5)] * 3)


def templates(**more):
    return {"captions": ["a <e>"]} | more


def test_a_batch_has_images_of_one_shape_and_an_epoch_each_of_them_once(tmp_path, vae):
    sizes = [(40, 20), (20, 40), (32, 32), (39, 20), (21, 40), (20, 41), (64, 20)]
    for number, (width, height) in enumerate(sizes):
        noise(tmp_path / f"images/{number}.png", width, height, number)
    dataset = dataset_of(recipe_of(tmp_path, templates(), buckets=True), vae, size=2, resolution=32)
    batches = [dataset.at(number) for number in range(dataset.batches_per_epoch)]
    assert Counter(example for batch in batches for example in batch.examples) == dict.fromkeys(range(7), 1)
    assert len({batch.latents.shape[-2:] for batch in batches}) >= 3
    for batch in batches:
        height, width = (2.0 * side for side in batch.latents.shape[-2:])
        assert {tuple(size[4:]) for size in batch.sizes.tolist()} == {(height, width)}
        for size, example in zip(batch.sizes.tolist(), batch.examples, strict=True):
            assert (size[1], size[0]) == sizes[int(dataset.examples[example].image.stem)]


def test_concepts_have_settings_of_their_own(tmp_path, vae):
    noise(tmp_path / "thing/0.png", 24, 24)
    noise(tmp_path / "class/0.png", 24, 24, 1)
    Image.new("L", (24, 24), 0).save(tmp_path / "thing/0-mask.png")
    thing = templates(images="thing", loss_weight=2.5)
    kind = {"captions": ["a ring"], "images": "class", "prior": True, "loss_weight": 0.5, "resolution": 8}
    dataset = dataset_of(recipe_of(tmp_path, thing, kind), vae, size=4)
    seen = {batch.captions[0]: batch for batch in map(dataset.at, range(2))}
    assert seen["a <e>"].weight.tolist() == [2.5]
    assert seen["a <e>"].prior.tolist() == [False]
    assert seen["a <e>"].mask.shape == (1, 1, 8, 8)
    assert seen["a <e>"].mask.max() == 0
    assert seen["a ring"].weight.tolist() == [0.5]
    assert seen["a ring"].prior.tolist() == [True]
    assert seen["a ring"].mask is None
    assert seen["a ring"].latents.shape == (1, 4, 4, 4)


def test_an_image_without_a_mask_in_a_batch_with_masks(tmp_path, vae):
    for number in range(2):
        noise(tmp_path / f"images/{number}.png", 16, 16, number)
    half = Image.new("L", (16, 16), 255)
    half.paste(0, (0, 0, 8, 16))
    half.save(tmp_path / "images/1-mask.png")
    dataset = dataset_of(recipe_of(tmp_path, templates(flip=True)), vae, size=2)
    sides = set()
    for number in range(20):
        batch = dataset.at(number)
        masks = dict(zip(batch.examples, batch.mask, strict=True))
        assert masks[0].min() == 1
        left, right = masks[1][0, :, :4], masks[1][0, :, 4:]
        assert {float(left.mean()), float(right.mean())} == {0.0, 1.0}
        sides.add(float(left.mean()))
    assert sides == {0.0, 1.0}  # mirrored with its image, about half the time


def test_transparency_as_a_mask(tmp_path, vae):
    values = numpy.full((16, 16, 4), 255, numpy.uint8)
    values[:8, :, 3] = 0
    (tmp_path / "images").mkdir()
    Image.fromarray(values).save(tmp_path / "images/0.png")
    batch = dataset_of(recipe_of(tmp_path, templates(masks="alpha")), vae).at(0)
    assert batch.mask[0, 0, :, 0].tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    assert dataset_of(recipe_of(tmp_path, templates()), vae).at(0).mask is None


def test_shuffled_tags_depend_on_seed_and_batch(tmp_path, vae):
    noise(tmp_path / "images/0.png")
    concept = {"captions": ["<e>, a, b, c"], "shuffle_tags": True, "keep_tags": 1, "repeats": 3}
    recipe = recipe_of(tmp_path, concept)
    shown = [dataset_of(recipe, vae, size=3).at(number).captions for number in range(20)]
    again = dataset_of(recipe, vae, size=3)
    assert [again.at(number).captions for number in reversed(range(20))] == shown[::-1]
    texts = Counter(text for captions in shown for text in captions)
    assert len(texts) == 6
    assert all(text.startswith("<e>, ") for text in texts)


def test_bad_settings_are_errors(tmp_path, vae):
    noise(tmp_path / "images/0.png")
    with pytest.raises(StageError, match=r"steps of 64 pixels do not fit a resolution of 16; choose a smaller"):
        dataset_of(recipe_of(tmp_path, templates(), buckets=True, bucket_step=64), vae)
    with pytest.raises(StageError, match="15x15 pixels: this model needs multiples of 2 pixels"):
        dataset_of(recipe_of(tmp_path, templates()), vae, resolution=15, multiple=2)


def test_wildcards_are_drawn_by_seed_and_batch_alone(tmp_path, vae):
    for number in range(4):
        noise(tmp_path / f"images/{number}.png", seed=number)
    keys = {"captions": ["{a|the|one} <e> ||| {x|y}, z"], "wildcards": True, "keep_separator": "|||",
            "shuffle_tags": True}  # fmt: skip
    recipe = recipe_of(tmp_path, keys, cache_latents="memory")
    dataset = dataset_of(recipe, vae, size=4)
    captions = [dataset.captions(number) for number in range(60)]
    seen = Counter(caption for batch in captions for caption in batch)
    ends = ("x, z", "y, z", "z, x", "z, y")
    assert seen.keys() == {f"{one} <e>, {end}" for one in ("a", "the", "one") for end in ends}
    assert min(seen.values()) > 5
    again = dataset_of(recipe, vae, size=4)
    assert [again.captions(number) for number in reversed(range(60))] == captions[::-1]
    assert [dataset_of(recipe, vae, size=4, seed=4).captions(number) for number in range(60)] != captions
