"""Norm rules against numbers calculated by hand."""

import pytest
import torch

from pivotune.pipeline.embeddings.norms import apply_rule, apply_rules, norm_statistics, scale_to
from pivotune.pipeline.recipe.options import Band

TABLE = torch.tensor([[3.0, 4.0], [0.0, 1.0], [0.0, 2.0], [6.0, 8.0]])  # norms 5, 1, 2, 10
VECTORS = torch.tensor([[0.6, 0.8], [0.0, 20.0]])  # norms 1, 20


def test_statistics_of_a_vocabulary():
    statistics = norm_statistics(TABLE)
    assert (statistics.median, statistics.mean, statistics.low, statistics.high) == (2.0, 4.5, 1.0, 10.0)


def test_statistics_of_a_half_precision_vocabulary_are_taken_in_float32():
    table = torch.full((10, 4096), 8.0, dtype=torch.float16)  # the sum of squares overflows float16
    assert norm_statistics(table).median == 512.0


@pytest.mark.parametrize(
    ("rule", "norms"),
    [
        ("median", [2.0, 2.0]),
        ("mean", [4.5, 4.5]),
        ("initial", [5.0, 1.0]),
        (0.4, [0.4, 0.4]),
        (Band(2.0, 10.0), [2.0, 10.0]),
        (Band(0.5, 30.0), [1.0, 20.0]),
    ],
)
def test_a_rule_sets_the_norm_and_keeps_the_direction(rule, norms):
    after = apply_rule(VECTORS, rule, norm_statistics(TABLE), TABLE[:2].norm(dim=1))
    assert after.norm(dim=1).tolist() == pytest.approx(norms)
    assert torch.nn.functional.cosine_similarity(after, VECTORS).tolist() == pytest.approx([1.0, 1.0])


def test_a_vector_of_zeros_is_unchanged():
    assert scale_to(torch.zeros(1, 3), 2.0).tolist() == [[0.0, 0.0, 0.0]]


def test_the_spread_of_all_rows_moves_towards_the_tables():
    """diffusers' retract_embeddings, with the standard deviations by hand."""
    values = [3.0, 4.0, 0.0, 1.0, 0.0, 2.0, 6.0, 8.0]
    mean = sum(values) / 8
    table = (sum((value - mean) ** 2 for value in values) / 7) ** 0.5
    vectors = torch.tensor([[1.0, -1.0], [3.0, -3.0]])  # mean 0, squares 1, 1, 9, 9
    own = (20 / 3) ** 0.5
    statistics = norm_statistics(TABLE)
    assert statistics.spread == pytest.approx(table)
    after = apply_rule(vectors, "spread", statistics, TABLE[:2].norm(dim=1))
    torch.testing.assert_close(after, vectors * (table / own) ** 0.1)


def test_rows_follow_their_own_rules():
    vectors = torch.tensor([[1.0, -1.0], [3.0, -3.0], [0.0, 7.0], [5.0, 0.0]])
    after = apply_rules(vectors, ["spread", "spread", 2.0, None], norm_statistics(TABLE), TABLE.norm(dim=1))
    torch.testing.assert_close(
        after[:2], apply_rule(vectors[:2], "spread", norm_statistics(TABLE), TABLE[:2].norm(dim=1))
    )
    assert after[2:].tolist() == [[0.0, 2.0], [5.0, 0.0]]
