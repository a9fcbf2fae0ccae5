"""Epochs: every image once, batches of one shape, independent of earlier calls."""

from collections import Counter

import pytest

from pivotune.pipeline.data.epochs import ConceptQuota, Order


def one_concept(count: int, size: int, shapes=None, seed: int = 0) -> Order:
    return Order([ConceptQuota(tuple(range(count)), count)], shapes or ["square"] * count, size, seed)


def epoch_of(order: Order, number: int) -> list[int]:
    return [example for batch in order.epoch(number) for example in batch]


def test_a_batch_does_not_depend_on_earlier_calls():
    shapes = ["wide", "tall", "wide", "wide", "tall", "square", "wide"]
    forward, backward = one_concept(7, 3, shapes, 4), one_concept(7, 3, shapes, 4)
    there = [forward.at(n) for n in range(20)]
    back = [backward.at(n) for n in reversed(range(20))]
    assert there == back[::-1]
    assert one_concept(7, 3, shapes, 4).at(13) == there[13]
    assert [one_concept(7, 3, shapes, 5).at(n) for n in range(20)] != there


@pytest.mark.parametrize("size", [1, 2, 3, 4, 100])
def test_an_epoch_has_every_image_once_in_batches_of_one_shape(size):
    shapes = [("wide", "tall", "square")[n % 3 if n < 20 else 0] for n in range(31)]
    order = one_concept(31, size, shapes)
    for number in range(3):
        assert sorted(epoch_of(order, number)) == list(range(31))
        assert all(len({shapes[example] for example in batch}) == 1 for batch in order.epoch(number))
        assert max(map(len, order.epoch(number))) <= size
    asked = [order.at(n) for n in range(2 * order.batches_per_epoch)]
    assert asked == order.epoch(0) + order.epoch(1)
    assert epoch_of(order, 0) != epoch_of(order, 1)


def test_incomplete_batches_are_split_evenly():
    assert sorted(map(len, one_concept(10, 4).epoch(0))) == [3, 3, 4]
    assert sorted(map(len, one_concept(5, 4).epoch(0))) == [2, 3]
    assert sorted(map(len, one_concept(3, 8).epoch(0))) == [3]


def test_repeats_are_shuffled_with_the_other_images():
    order = Order([ConceptQuota((0, 1) * 3, 6), ConceptQuota((2, 3, 4), 3)], [0] * 5, 2, seed=1)
    for number in range(4):
        assert Counter(epoch_of(order, number)) == {0: 3, 1: 3, 2: 1, 3: 1, 4: 1}
    assert len({tuple(epoch_of(order, number)) for number in range(4)}) == 4


def test_rotating_examples_are_sampled_equally_often():
    """Seven images of which an epoch has three: after seven epochs each was used three times."""
    order = Order([ConceptQuota(tuple(range(7)), 3), ConceptQuota((7, 8), 2)], [0] * 9, 2, seed=1)
    shown = [epoch_of(order, number) for number in range(7)]
    assert all(len(epoch) == len(set(epoch)) == 5 for epoch in shown[:2])
    assert Counter(e for epoch in shown for e in epoch) == dict.fromkeys(range(7), 3) | {7: 7, 8: 7}


def test_epochs_of_different_length_are_found_by_number():
    """Rotating images of two shapes: the number of batches differs between epochs."""
    shapes = ["wide", "wide", "tall", "tall", "wide"]

    def order():
        return Order([ConceptQuota((0, 1, 2, 3, 4), 2)], shapes, 2, seed=0)

    epochs = [order().epoch(number) for number in range(30)]
    assert {len(epoch) for epoch in epochs} == {1, 2}
    flat = [batch for epoch in epochs for batch in epoch]
    assert [order().at(n) for n in (29, 3, 17, 0)] == [flat[n] for n in (29, 3, 17, 0)]
    shown = [example for epoch in epochs[:5] for batch in epoch for example in batch]
    assert Counter(shown) == dict.fromkeys(range(5), 2)
