"""Losses of elements, examples and batches against formulas."""

import pytest
import torch

from pivotune.pipeline.recipe.options import ObjectiveOptions
from pivotune.pipeline.recipe.typed import options_of
from pivotune.pipeline.train.loss import NoisyBatch, example_losses, mean_loss

DRAW = torch.Generator().manual_seed(0)
ANSWER, TARGET = (torch.randn(3, 4, 2, 2, generator=DRAW) for _ in range(2))
C = torch.tensor([0.1, 0.5, 2.0])


def asked(**parts):
    return NoisyBatch(torch.zeros(3, 4, 2, 2), torch.zeros(3), TARGET, **parts)


@pytest.mark.parametrize(
    ("kind", "of_one"),
    [
        ("l2", lambda d, c: d * d),
        ("l1", lambda d, c: abs(d)),
        ("huber", lambda d, c: 2 * c * ((d * d + c * c) ** 0.5 - c)),
        ("smooth_l1", lambda d, c: 2 * ((d * d + c * c) ** 0.5 - c)),
    ],
)
def test_each_kind_of_loss(kind, of_one):
    found = example_losses(ANSWER, asked(threshold=C), options_of(ObjectiveOptions, loss=kind))
    for n in range(3):
        differences = (ANSWER[n] - TARGET[n]).flatten().tolist()
        expected = sum(of_one(d, float(C[n])) for d in differences) / 16
        assert float(found[n]) == pytest.approx(expected, rel=1e-5)


def test_huber_is_quadratic_near_zero_and_linear_far_away():
    batch = NoisyBatch(*[torch.zeros(1, 1, 1, 1)] * 3, None, torch.tensor([0.1]))
    options = options_of(ObjectiveOptions, loss="huber")
    near, far = (example_losses(torch.full((1, 1, 1, 1), d), batch, options) for d in (1e-3, 100.0))
    assert float(near) == pytest.approx(1e-6, rel=1e-2)
    assert float(far) == pytest.approx(2 * 0.1 * (100 - 0.1), rel=1e-4)


@pytest.mark.parametrize("normalize", [False, True])
def test_a_mask_reduces_the_loss_outside(normalize):
    mask = torch.tensor([[1.0, 0.0], [0.05, 0.5]]).expand(3, 1, 2, 2)
    raised = [1.0, 0.2, 0.2, 0.5]
    found = example_losses(
        ANSWER, asked(), options_of(ObjectiveOptions, unmasked_weight=0.2, normalize_mask=normalize), mask
    )
    for n in range(3):
        squares = ((ANSWER[n] - TARGET[n]) ** 2).flatten(1)
        total = sum(float(row[i]) * raised[i] for row in squares for i in range(4)) / 16
        expected = total / (sum(raised) / 4) if normalize else total
        assert float(found[n]) == pytest.approx(expected, rel=1e-5)


def test_pixels_outside_a_mask_get_no_gradient_without_weight():
    answer = ANSWER.clone().requires_grad_(True)
    mask = torch.zeros(3, 1, 2, 2)
    mask[..., 0, 0] = 1
    example_losses(answer, asked(), options_of(ObjectiveOptions, unmasked_weight=0.0), mask).sum().backward()
    assert float(answer.grad[..., 0, 0].abs().min()) > 0
    assert float(answer.grad[..., 1, :].abs().max()) == 0


def test_an_examples_loss_has_the_weights_of_its_timestep_and_concept():
    plain = example_losses(ANSWER, asked(), options_of(ObjectiveOptions))
    weighted = example_losses(ANSWER, asked(weight=torch.tensor([1.0, 0.0, 3.0])), options_of(ObjectiveOptions))
    torch.testing.assert_close(weighted, plain * torch.tensor([1.0, 0.0, 3.0]))
    own = torch.tensor([0.5, 2.0, 1.0])
    expected = (0.5 * plain[0] + 2 * plain[1] + plain[2]) / 3
    torch.testing.assert_close(mean_loss(plain, own), expected)


def test_the_loss_of_class_images_matches_dreambooth():
    losses = torch.tensor([1.0, 2.0, 10.0, 4.0])
    prior = torch.tensor([False, False, True, True])
    assert float(mean_loss(losses, None, prior, 0.5)) == pytest.approx(1.5 + 0.5 * 7.0)
    assert float(mean_loss(losses, None, ~prior & False, 0.5)) == pytest.approx(4.25)
    assert float(mean_loss(losses[2:], None, prior[2:], 0.5)) == pytest.approx(3.5)


def test_the_loss_is_computed_in_float32():
    prediction = torch.full((2, 1, 2, 2), 300.0, dtype=torch.float16)  # its square is no finite float16
    found = example_losses(prediction, NoisyBatch(*[torch.zeros(2, 1, 2, 2)] * 3), options_of(ObjectiveOptions))
    assert found.tolist() == [90000.0, 90000.0]
