"""Nearest tokens by cosine."""

import pytest
import torch

from pivotune.pipeline.embeddings.metrics import nearest_tokens


def test_nearest_tokens_are_found_across_blocks_best_first():
    table = torch.zeros(20_000, 3)
    table[:, 2] = 1.0
    table[5] = torch.tensor([1.0, 0.1, 0.0])
    table[17_000] = torch.tensor([2.0, 0.0, 0.0])  # in the second block, longer but of a nearer direction
    [found] = nearest_tokens(torch.tensor([[5.0, 0.0, 0.0]]), table, 2)
    assert [token for token, _ in found] == [17_000, 5]
    assert [cosine for _, cosine in found] == pytest.approx([1.0, 1 / 1.01**0.5])
