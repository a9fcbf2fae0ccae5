"""Tags of a caption: the first are kept, the others shuffled and dropped."""

from collections import Counter
from pathlib import Path
from random import Random

import pytest

from pivotune.pipeline.data.tags import augment_tags, draw_wildcards, longest_form, strip_weights, weights_in
from pivotune.pipeline.embeddings.placeholders import Replacer
from pivotune.pipeline.recipe.model import Concept


def shown(caption: str, draw: Random, **options) -> str:
    concept = Concept(Path("x"), **options)

    def order(count):
        return draw.sample(range(count), count)

    return augment_tags(caption, concept, lambda count: [draw.random() for _ in range(count)], order)


def test_kept_tags_are_first_and_others_are_shuffled_uniformly():
    draw = Random(0)
    seen = Counter(shown("<e> ring,  a, b ,c", draw, shuffle_tags=True, keep_tags=1) for _ in range(6000))
    assert len(seen) == 6
    assert all(text.startswith("<e> ring, ") for text in seen)
    assert all(count == pytest.approx(1000, abs=150) for count in seen.values())


def test_tags_are_dropped_at_the_rate_and_kept_ones_never():
    draw = Random(0)
    texts = [shown("<e>, a, b, c", draw, tag_dropout=0.3, keep_tags=1).split(", ") for _ in range(2000)]
    assert all(tags[0] == "<e>" for tags in texts)
    assert sum(len(tags) - 1 for tags in texts) / 6000 == pytest.approx(0.7, abs=0.03)
    assert [tag for tag in "abc" if ["<e>", tag] in texts] == ["a", "b", "c"]


def test_all_tags_may_be_dropped_or_none():
    draw = Random(0)
    assert shown("a, b", draw, tag_dropout=1.0) == ""
    assert shown("a, b", draw, shuffle_tags=True, keep_tags=9) == "a, b"


def test_another_separator():
    assert sorted(shown("a|b, c|d", Random(0), shuffle_tags=True, tag_separator="|").split("| ")) == ["a", "b, c", "d"]


def test_tags_are_capitalised_at_the_rate_and_kept_ones_never():
    draw = Random(0)
    seen = Counter(shown("<e> It, red ring", draw, capitals=0.3, keep_tags=1) for _ in range(6000))
    assert seen.keys() == {f"<e> It, {tag}" for tag in ("red ring", "RED RING", "Red Ring", "Red ring")}
    assert seen.pop("<e> It, red ring") == pytest.approx(4200, abs=150)
    assert all(count == pytest.approx(600, abs=80) for count in seen.values())


@pytest.mark.parametrize("embedding", ["<straße>", "große katze", "ﬁsh", "ıshık", "λόγος", "été", "<cat>"])
def test_a_placeholder_is_found_in_a_capitalised_tag(embedding):
    draw = Random(0)
    seen = {shown(f"a, red {embedding} ring", draw, capitals=1.0) for _ in range(60)}
    assert all(Replacer([embedding]).embeddings_in(text) == [embedding] for text in seen), seen


@pytest.mark.parametrize(
    ("caption", "starts", "ends"),
    [
        ("<e>, ring ||| a, b, c", "<e>, ring, ", ""),
        ("<e> ||| a, b ||| last, tag", "<e>, ", ", last, tag"),
        ("<e>, ||| a,, b", "<e>, ", ""),
        ("x, a, b", "x, ", ""),
    ],
)
def test_tags_are_kept_before_and_after_the_separator(caption, starts, ends):
    """Only without it do the first tags count."""
    draw = Random(0)
    keys = {"shuffle_tags": True, "keep_separator": "|||", "keep_tags": 1}
    seen = {shown(caption, draw, **keys) for _ in range(60)}
    inner = {tuple(text.removeprefix(starts).removesuffix(ends).split(", ")) for text in seen}
    assert all(text.startswith(starts) and text.endswith(ends) and "||" not in text for text in seen)
    assert len(seen) == (6 if "c" in caption else 2)
    assert {tuple(sorted(tags)) for tags in inner} == {("a", "b", "c") if "c" in caption else ("a", "b")}


def test_tags_between_separators_may_be_dropped_and_the_others_not():
    draw = Random(0)
    seen = {shown("<e> ||| a, b ||| z", draw, tag_dropout=0.5, keep_separator="|||") for _ in range(60)}
    assert seen == {"<e>, z", "<e>, a, z", "<e>, b, z", "<e>, a, b, z"}


def test_a_part_of_each_wildcard_is_drawn_uniformly():
    draw = Random(0)

    def chances(count):
        return [draw.random() for _ in range(count)]

    seen = Counter(draw_wildcards("a {red|blue|} <e> on {a {b|c} d", chances) for _ in range(6000))
    assert seen.keys() == {f"a {one} <e> on {{a {two} d" for one in ("red", "blue", "") for two in "bc"}
    assert all(count == pytest.approx(1000, abs=150) for count in seen.values())
    assert draw_wildcards("{{a|b}} {only} {", chances) == "{a|b} only {"
    assert draw_wildcards("none", chances) == "none"


def test_the_longest_form_of_a_caption():
    concept = Concept(Path("x"), wildcards=True, keep_separator="|||")
    assert longest_form("{a|the big} <e> ||| x, y ||| z {{", concept) == "the big <e>, x, y, z {"
    assert longest_form("{a|b} ||| c", Concept(Path("x"))) == "{a|b} ||| c"


@pytest.mark.parametrize(
    ("caption", "stripped", "count"),
    [
        ("a (<e>:1.2) ring, (red:.5)", "a <e> ring, red", 2),
        (r"((<e>:1.1), ring:2) (saber \(fate\): 1.3 )", r"<e>, ring saber \(fate\)", 2),
        ("(((deep:1.1):1.2):1.3)", "deep", 1),
        (r"\(a:1.2\), (b), (16:9), at (10:30), (note: red), b:1.2)", None, 0),
    ],
)
def test_weights_are_found_and_stripped(caption, stripped, count):
    assert len(weights_in(caption)) == count
    assert strip_weights(caption) == (caption if stripped is None else stripped)
