"""Crops, flips and colours; a mask is changed with its image."""

import colorsys
from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image

from pivotune.pipeline.data.augment import Variant, apply_variant, apply_variant_to_mask, is_augmented, random_variant
from pivotune.pipeline.recipe.model import Concept


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("place", [(0.5, 0.5), (0.0, 0.0), (1.0, 0.2), (0.3, 0.9)])
@pytest.mark.parametrize("turn", [0.0, 30.0])
@pytest.mark.parametrize(("size", "cut"), [((96, 48), (32, 32)), ((48, 96), (32, 64)), ((100, 40), (64, 32))])
def test_a_mask_is_cropped_rotated_and_flipped_with_its_image(size, cut, turn, place, flip):
    """The image is its own mask: white where the loss counts. Averaged to the same grid both must be equal."""
    draw = numpy.random.default_rng(1)
    blobs = Image.fromarray((draw.random((6, 12)) > 0.5).astype(numpy.uint8) * 255)
    blobs = blobs.resize(size, Image.Resampling.NEAREST)
    variant = Variant(place, flip, turn=turn)
    image = (apply_variant(blobs.convert("RGB"), cut, variant)[0] + 1) / 2
    grid = image.reshape(cut[1] // 8, 8, cut[0] // 8, 8).mean((1, 3))
    mask = apply_variant_to_mask(blobs, cut, variant, cut[1] // 8, cut[0] // 8)[0].float() / 255
    assert mask.shape == grid.shape
    assert (mask - grid).abs().max() < 0.12
    assert mask.std() > 0.2


def test_a_flipped_image_is_mirrored():
    image = Image.effect_noise((16, 16), 90).convert("RGB")
    plain, mirrored = (apply_variant(image, (16, 16), Variant(flip=flip)) for flip in (False, True))
    assert torch.equal(mirrored, plain.flip(-1))
    assert not torch.equal(mirrored, plain)


@pytest.mark.parametrize("place", [(0.5, 0.5), (0.0, 0.0), (1.0, 0.2)])
@pytest.mark.parametrize("turn", [-180.0, -90.0, -45.0, -5.0, 5.0, 30.0, 60.0, 90.0])
@pytest.mark.parametrize("size", [(96, 48), (48, 96), (64, 64)])
def test_a_rotated_image_has_no_empty_corner(size, turn, place):
    shown = apply_variant(Image.new("RGB", size, (255, 255, 255)), (32, 24), Variant(place, turn=turn))
    assert shown.min() > 0.99


def test_an_image_is_rotated_counterclockwise():
    image = Image.new("RGB", (64, 64))
    image.paste((255, 255, 255), (0, 0, 32, 64))  # white on the left, which comes to the bottom
    rows = apply_variant(image, (32, 32), Variant(turn=90.0))[0].mean(1)
    assert rows[:14].max() < -0.99
    assert rows[18:].min() > 0.99


def colour(**changes) -> list[int]:
    shown = apply_variant(Image.new("RGB", (8, 8), (200, 100, 50)), (8, 8), Variant(**changes))
    return ((shown[:, 0, 0] + 1) * 127.5).round().int().tolist()


def test_colour_changes():
    assert colour() == [200, 100, 50]
    assert colour(brightness=0.5) == [100, 50, 25]
    gray = colour(saturation=0.0)
    assert max(gray) - min(gray) <= 1
    shifted = colour(hue=0.25)
    before, after = (colorsys.rgb_to_hsv(*(value / 255 for value in rgb)) for rgb in ([200, 100, 50], shifted))
    assert (after[0] - before[0]) % 1 == pytest.approx(0.25, abs=0.02)
    assert after[1:] == pytest.approx(before[1:], abs=0.02)
    assert colour(contrast=0.0) == colour(contrast=0.0, brightness=1.0) != [200, 100, 50]


def drawn(concept: Concept) -> list[Variant]:
    return [random_variant(concept, False, torch.Generator().manual_seed(seed)) for seed in range(300)]


def test_variants_cover_the_range_of_the_concept():
    concept = Concept(Path("x"), crop="random", brightness=0.2, contrast=0.1, saturation=0.3, hue=0.05, rotate=20)
    variants = drawn(concept)
    for key, low, high in (
        ("brightness", 0.8, 1.2), ("contrast", 0.9, 1.1), ("saturation", 0.7, 1.3), ("hue", -0.05, 0.05),
        ("turn", -20, 20),
    ):  # fmt: skip
        values = [getattr(variant, key) for variant in variants]
        assert low <= min(values) < low + 0.05 * (high - low)
        assert high - 0.05 * (high - low) < max(values) <= high
    places = torch.tensor([variant.position for variant in variants])
    assert places.min() >= 0
    assert places.max() <= 1
    assert places.mean(0).tolist() == pytest.approx([0.5, 0.5], abs=0.06)


def test_without_augmentation_the_image_is_unchanged():
    assert set(drawn(Concept(Path("x")))) == {Variant()}
    assert not is_augmented(Concept(Path("x"), flip=True))
    assert is_augmented(Concept(Path("x"), crop="random"))
    assert is_augmented(Concept(Path("x"), hue=0.1))
    assert is_augmented(Concept(Path("x"), rotate=5))
