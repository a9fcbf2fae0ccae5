"""AdamW on rows: equal to torch's if all rows are trained, no change of rows that are not."""

import pytest
import torch

from pivotune.pipeline.train.row_optimizers import LazyAdamW


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_if_every_row_is_trained_it_equals_torchs_adamw(weight_decay):
    torch.manual_seed(0)
    start = torch.randn(5, 7)
    theirs = torch.nn.Parameter(start.clone())
    adamw = torch.optim.AdamW([theirs], lr=1e-2, betas=(0.9, 0.99), eps=1e-8, weight_decay=weight_decay)
    ours = start.clone()
    lazy = LazyAdamW(ours, betas=(0.9, 0.99), weight_decay=weight_decay)
    index = torch.arange(5)
    for _ in range(20):
        gradient = torch.randn(5, 7)
        theirs.grad = gradient.clone()
        adamw.step()
        lazy.step(index, ours[index], gradient, 1e-2)
    torch.testing.assert_close(ours, theirs.detach(), rtol=1e-5, atol=1e-6)


def test_a_row_that_is_not_in_the_batch_is_unchanged_and_counts_no_step():
    torch.manual_seed(0)
    values = torch.randn(4, 6)
    lazy = LazyAdamW(values, weight_decay=0.5)
    lazy.step(torch.tensor([0, 2]), values[[0, 2]], torch.randn(2, 6), 0.1)
    before = values.clone()
    lazy.step(torch.tensor([0]), values[[0]], torch.randn(1, 6), 0.1)
    assert torch.equal(values[1:], before[1:])
    assert not torch.equal(values[0], before[0])
    assert lazy.steps.tolist() == [2, 0, 1, 0]


def test_learning_rates_per_row():
    values = torch.zeros(2, 3)
    lazy = LazyAdamW(values)
    lazy.step(torch.arange(2), values.clone(), torch.ones(2, 3), torch.tensor([0.1, 0.0]))
    assert values[0].tolist() == pytest.approx([-0.1] * 3)
    assert values[1].tolist() == [0.0] * 3


def test_memory_is_twelve_bytes_per_value_and_a_step_count_per_row():
    values = torch.zeros(1000, 768)
    lazy = LazyAdamW(values)
    size = sum(t.untyped_storage().nbytes() for t in (values, lazy.moment, lazy.square, lazy.steps))
    assert size == 12 * values.numel() + 4 * len(values)
