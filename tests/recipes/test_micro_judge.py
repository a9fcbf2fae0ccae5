"""The judge finds what is drawn, and tells it from everything else."""

from __future__ import annotations

import numpy as np
import pytest

from pivotune.recipes.micro import judge
from pivotune.recipes.micro.draw import draw
from pivotune.recipes.micro.grammar import BACKGROUNDS, COLOURS, Scene, Thing, name_of, sample_scene
from pivotune.recipes.micro.images import THINGS, scenes


def test_fresh_drawings_are_near_and_other_things_far() -> None:
    rng = np.random.default_rng(1)
    drawn = [sample_scene(rng, free=0.0) for _ in range(12)]
    images = [draw(scene) for scene in drawn]
    own = [judge.distance_to_drawing(image, scene) for image, scene in zip(images, drawn, strict=True)]
    other = [judge.distance_to_drawing(image, scene) for image, scene in zip(images[1:], drawn, strict=False)]
    assert max(own) < 8
    assert min(other) > judge.HIT


@pytest.mark.parametrize("name", THINGS)
def test_shipped_things_are_told_apart(name: str) -> None:
    image = draw(scenes(name)[0][0])
    ground = (0, 0, 0)  # the judge takes the background from the image
    distances = {other: judge.distance_to_drawing(image, Scene(THINGS[other], ground)) for other in THINGS}
    assert min(distances, key=distances.__getitem__) == name
    assert distances[name] < 8
    assert min(distance for other, distance in distances.items() if other != name) > judge.HIT


def test_size_place_and_background_do_not_matter() -> None:
    thing = Thing("heart", COLOURS["red"], "striped", COLOURS["white"])
    for background, x, radius in (("gray", 26.0, 16.0), ("black", 38.0, 22.0)):
        image = draw(Scene(thing, BACKGROUNDS[background], x, 30.0, radius))
        assert judge.distance_to_drawing(image, Scene(thing, (0, 0, 0))) < 8
        assert judge.background_word(image) == background


def test_an_empty_image_is_as_far_as_can_be() -> None:
    empty = np.full((64, 64, 3), 200, np.uint8)
    assert judge.find_object(empty) is None
    assert judge.distance_to_drawing(empty, Scene(THINGS["emblem"], (0, 0, 0))) == judge.NOTHING


def test_noise_is_no_hit() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    assert judge.distance_to_drawing(noise, Scene(THINGS["emblem"], (0, 0, 0))) > judge.HIT


def test_the_box_is_where_the_thing_is() -> None:
    found = judge.find_object(draw(Scene(Thing("square", COLOURS["blue"]), BACKGROUNDS["white"], 30.0, 34.0, 20.0)))
    assert found is not None
    assert found.background == BACKGROUNDS["white"]
    assert abs(found.left - (30 - 0.84 * 20)) <= 1
    assert abs(found.bottom - (34 + 0.84 * 20)) <= 1


def test_attributes_are_read_from_drawings() -> None:
    rng = np.random.default_rng(5)
    for _ in range(4):
        scene = sample_scene(rng, free=0.0)
        image = draw(scene)
        assert judge.nearest_shape(image, scene.thing) == scene.thing.shape
        assert judge.colour_word(image, scene.thing) == name_of(scene.thing.colour, COLOURS)
        assert judge.background_word(image) == name_of(scene.background, BACKGROUNDS)
