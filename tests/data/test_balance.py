"""How often concepts and embeddings are in an epoch."""

from pathlib import Path

import pytest

from pivotune.pipeline.data.epochs import Order, concept_quotas, count_batches, counts_per_epoch, embedding_counts
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
    """How often each concept is in an epoch."""
    counts = counts_per_epoch(concept_quotas(recipe, captions))
    result, first = [], 0
    for images in captions:
        result.append(sum(counts[first + place] for place in range(len(images))))
        first += len(images)
    return result


FEW, MANY = [["<a>"]] * 10, [["<b>"]] * 100


def test_without_balance_repeats_and_images_per_epoch_decide(tmp_path):
    assert shown(recipe(tmp_path, "none", "", ""), [FEW, MANY]) == [10, 100]
    assert shown(recipe(tmp_path, "none", "repeats = 3", "images_per_epoch = 25"), [FEW, MANY]) == [30, 25]


def test_concepts_are_seen_equally_often(tmp_path):
    assert shown(recipe(tmp_path, "concepts", "", ""), [FEW, MANY]) == [100, 100]
    assert shown(recipe(tmp_path, "concepts", "images_per_epoch = 7", ""), [FEW, MANY[:33]]) == pytest.approx([7, 33])


def test_the_share_is_exact_over_the_epochs(tmp_path):
    """Seven images used a hundred times per epoch: all equally often after seven epochs."""
    quotas = concept_quotas(recipe(tmp_path, "concepts", "", ""), [FEW[:7], MANY])
    order = Order(quotas, [0] * 107, 4, seed=0)
    counts = [0] * 107
    for epoch in range(7):
        for batch in order.epoch(epoch):
            for example in batch:
                counts[example] += 1
    assert counts == [100] * 7 + [7] * 100


def test_an_embedding_in_few_images_is_repeated(tmp_path):
    one = [*MANY, *FEW]
    balanced = recipe(tmp_path, "embeddings", "")
    found = embedding_counts(balanced, one, concept_quotas(balanced, [one]))
    assert found == {"<a>": (10, 100.0), "<b>": (100, 100.0)}
    plain = recipe(tmp_path, "none", "")
    assert embedding_counts(plain, one, concept_quotas(plain, [one])) == {"<a>": (10, 10.0), "<b>": (100, 100.0)}


def test_an_embedding_in_some_captions_of_an_image_counts_by_their_share(tmp_path):
    captions = [["<a>", "x"], ["<b>"], ["<b> and <b>"], ["neither"]]
    balanced = recipe(tmp_path, "embeddings", "")
    quotas = concept_quotas(balanced, [captions])
    assert counts_per_epoch(quotas) == {0: 4, 1: 1, 2: 1, 3: 1}
    assert embedding_counts(balanced, captions, quotas) == {"<a>": (1, 2.0), "<b>": (2, 2.0)}


@pytest.mark.parametrize("size", [1, 3, 4, 50])
def test_batches_are_counted_as_they_are_made(tmp_path, size):
    shapes = [number % 3 for number in range(110)]
    for balance in ("none", "concepts"):
        quotas = concept_quotas(recipe(tmp_path, balance, "repeats = 2", ""), [FEW, MANY])
        assert count_batches(quotas, shapes, size) == pytest.approx(
            Order(quotas, shapes, size, 0).batches_per_epoch, abs=2
        )
    exact = concept_quotas(recipe(tmp_path, "none", "repeats = 2", ""), [FEW, MANY])
    assert count_batches(exact, shapes, size) == Order(exact, shapes, size, 0).batches_per_epoch
