"""How often an epoch shows which concept and which embedding."""

from pathlib import Path

import pytest

from pivotune.pipeline.data.epochs import Order, batches_of, embedding_counts, shown_counts, turns_of
from pivotune.pipeline.recipe.load import load_recipe
from pivotune.pipeline.recipe.model import Recipe

RECIPE = """
name = "x"
model.base = "micro"
data.balance = "{balance}"
{concepts}
[[embedding]]
placeholder = "<a>"
[[embedding]]
placeholder = "<b>"
[[stage]]
kind = "tokenize"
"""


def recipe(folder: Path, balance: str, *concepts: str) -> Recipe:
    tables = "\n".join(f'[[concept]]\nimages = "x"\n{concept}' for concept in concepts)
    (folder / "r.toml").write_text(RECIPE.format(balance=balance, concepts=tables), "utf-8")
    return load_recipe(folder / "r.toml")


def shown(recipe: Recipe, captions) -> list[float]:
    """Showings of each concept in an epoch."""
    counts = shown_counts(turns_of(recipe, captions))
    result, first = [], 0
    for images in captions:
        result.append(sum(counts[first + place] for place in range(len(images))))
        first += len(images)
    return result


FEW, MANY = [["<a>"]] * 10, [["<b>"]] * 100


def test_without_balance_images_repeats_and_samples_decide(tmp_path):
    assert shown(recipe(tmp_path, "none", "", ""), [FEW, MANY]) == [10, 100]
    assert shown(recipe(tmp_path, "none", "repeats = 3", "images_per_epoch = 25"), [FEW, MANY]) == [30, 25]


def test_concepts_are_seen_equally_often(tmp_path):
    assert shown(recipe(tmp_path, "concepts", "", ""), [FEW, MANY]) == [100, 100]
    assert shown(recipe(tmp_path, "concepts", "images_per_epoch = 7", ""), [FEW, MANY[:33]]) == pytest.approx([7, 33])


def test_the_share_holds_exactly_over_the_epochs(tmp_path):
    """Seven images shown a hundred times an epoch: all equally often after seven epochs."""
    turns = turns_of(recipe(tmp_path, "concepts", "", ""), [FEW[:7], MANY])
    order = Order(turns, [0] * 107, 4, seed=0)
    counts = [0] * 107
    for epoch in range(7):
        for batch in order.epoch(epoch):
            for example in batch:
                counts[example] += 1
    assert counts == [100] * 7 + [7] * 100


def test_a_embedding_in_few_images_gets_its_share(tmp_path):
    one = [*MANY, *FEW]
    balanced = recipe(tmp_path, "embeddings", "")
    found = embedding_counts(balanced, one, turns_of(balanced, [one]))
    assert found == {"<a>": (10, 100.0), "<b>": (100, 100.0)}
    plain = recipe(tmp_path, "none", "")
    assert embedding_counts(plain, one, turns_of(plain, [one])) == {"<a>": (10, 10.0), "<b>": (100, 100.0)}


def test_a_embedding_in_some_captions_of_a_image_counts_by_their_share(tmp_path):
    captions = [["<a>", "x"], ["<b>"], ["<b> and <b>"], ["neither"]]
    balanced = recipe(tmp_path, "embeddings", "")
    turns = turns_of(balanced, [captions])
    assert shown_counts(turns) == {0: 4, 1: 1, 2: 1, 3: 1}
    assert embedding_counts(balanced, captions, turns) == {"<a>": (1, 2.0), "<b>": (2, 2.0)}


@pytest.mark.parametrize("size", [1, 3, 4, 50])
def test_batches_are_counted_as_they_are_made(tmp_path, size):
    shapes = [number % 3 for number in range(110)]
    for balance in ("none", "concepts"):
        turns = turns_of(recipe(tmp_path, balance, "repeats = 2", ""), [FEW, MANY])
        assert batches_of(turns, shapes, size) == pytest.approx(Order(turns, shapes, size, 0).batches_per_epoch, abs=2)
    exact = turns_of(recipe(tmp_path, "none", "repeats = 2", ""), [FEW, MANY])
    assert batches_of(exact, shapes, size) == Order(exact, shapes, size, 0).batches_per_epoch
