"""The drawn world: what is kept out of training stays out, words are tokens, drawings are the same every time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pivotune.recipes.micro.captions import SLOT, article, caption, describe, vocabulary
from pivotune.recipes.micro.draw import draw
from pivotune.recipes.micro.grammar import (
    COLOURS,
    SALMON,
    SALMON_REACH,
    SHAPES,
    TEXTURES,
    Scene,
    Thing,
    distance,
    held_out,
    name_of,
    sample_scene,
)
from pivotune.recipes.micro.images import THINGS, placeholder, scenes
from pivotune.recipes.micro.tokenizer import build_tokenizer, cut, word_merges

IMAGES = Path(__file__).parents[2] / "recipes" / "images"


@pytest.fixture(scope="module")
def sampled() -> list[tuple[Scene, str]]:
    """Scenes as training draws them, with a caption each."""
    rng = np.random.default_rng(2026)
    drawn = [sample_scene(rng, free=0.5) for _ in range(5000)]
    return [(scene, caption(scene, rng).text) for scene in drawn]


def test_no_scene_shows_what_is_held_out(sampled: list[tuple[Scene, str]]) -> None:
    for scene, _ in sampled:
        thing = scene.thing
        assert thing.shape in SHAPES
        assert thing.texture in TEXTURES
        colours = [c for c in (thing.colour, thing.second, thing.mark, scene.background) if c is not None]
        assert min(distance(c, SALMON) for c in colours) >= SALMON_REACH
        assert thing.shape != "ring" or name_of(thing.colour, COLOURS) != "teal"


def test_no_caption_names_what_is_held_out(sampled: list[tuple[Scene, str]]) -> None:
    for _, text in sampled:
        terms = set(text.split())
        assert not terms & {"salmon", "moon", "house", "two-tone", "checkered", "<emblem>"}
        # A teal ring, and not a gray ring on a teal thing: first colours stand before the noun.
        assert "teal ring" not in text
        assert not ("ring" in terms and " teal and " in f" {text} ")


def test_the_grammar_would_have_said_a_teal_ring() -> None:
    """The test above can fail: it looks for these."""
    thing = THINGS["emblem"]
    assert held_out(thing)
    assert " ".join(describe(thing, {"shape", "colour", "mark"})) == "teal ring with a orange dot"
    assert article("with a orange dot") == "with an orange dot"


@pytest.mark.parametrize("name", THINGS)
def test_every_shipped_thing_is_new_to_the_model(name: str) -> None:
    thing = THINGS[name]
    assert held_out(thing) or thing.shape not in SHAPES or thing.texture not in TEXTURES


def test_every_word_of_the_grammar_is_one_token() -> None:
    tokenizer = build_tokenizer()
    terms = vocabulary()
    assert {"photo", "striped", "teal", "diamond", "background", "*", SLOT} <= set(terms)
    assert {term: len(tokenizer(term, add_special_tokens=False).input_ids) for term in terms} == dict.fromkeys(terms, 1)
    assert len(tokenizer("zebra", add_special_tokens=False).input_ids) > 1


def test_captions_fit_the_tokens_that_training_reads(sampled: list[tuple[Scene, str]]) -> None:
    tokenizer = build_tokenizer()
    assert max(map(len, tokenizer([text for _, text in sampled]).input_ids)) <= 32


def test_merges_put_every_word_together() -> None:
    merges = word_merges(["ring", "string", "ringing"])
    assert cut(["r", "i", "n", "g</w>"], merges) == ["ring</w>"]
    assert cut(["s", "t", "r", "i", "n", "g</w>"], merges) == ["string</w>"]


def test_drawing_is_deterministic() -> None:
    rng_a, rng_b = np.random.default_rng(3), np.random.default_rng(3)
    for _ in range(20):
        one, other = sample_scene(rng_a), sample_scene(rng_b)
        assert one == other
        assert np.array_equal(draw(one), draw(other))


def test_a_drawing_has_its_colours_where_they_belong() -> None:
    image = draw(Scene(Thing("ring", (200, 10, 10), mark=(10, 10, 200)), (250, 250, 250), 32.0, 32.0, 20.0))
    assert image.shape == (64, 64, 3)
    assert tuple(image[32, 32]) == (10, 10, 200)  # the mark
    assert tuple(image[32, 32 + 15]) == (200, 10, 10)  # the ring
    assert tuple(image[32, 32 + 9]) == (250, 250, 250)  # between them
    assert tuple(image[0, 0]) == (250, 250, 250)


@pytest.mark.parametrize("name", THINGS)
def test_shipped_images_are_what_the_script_draws(name: str) -> None:
    folder = IMAGES / name
    expected = scenes(name)
    assert len(list(folder.glob("*.png"))) == len(list(folder.glob("*.txt"))) == len(expected) >= 8
    for number, (scene, text) in enumerate(expected):
        with Image.open(folder / f"{name}-{number}.png") as image:
            assert np.array_equal(np.asarray(image), draw(scene))
        written = (folder / f"{name}-{number}.txt").read_text(encoding="utf-8")
        assert written == text + "\n"
        assert placeholder(name) in text
