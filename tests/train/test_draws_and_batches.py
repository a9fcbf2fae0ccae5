"""Random choices depend on seed, purpose and step alone; every epoch shows every example once."""

from pathlib import Path

import pytest
import torch

from pivotune.pipeline.train.batches import Batches, Example
from pivotune.pipeline.train.draws import generator
from pivotune.pipeline.train.schedule import rate_factor

EXAMPLES = [Example(Path(f"{n}.png"), (f"a {n}", f"the {n}")) for n in range(7)]


def test_draws_differ_by_purpose_step_and_seed_and_repeat():
    def draw(*key):
        return torch.rand(4, generator=generator(*key)).tolist()

    assert draw(1, "noise", 5) == draw(1, "noise", 5)
    assert len({tuple(draw(*key)) for key in [(1, "noise", 5), (2, "noise", 5), (1, "order", 5), (1, "noise", 6)]}) == 4


def test_a_batch_is_the_same_whatever_was_asked_before():
    forward, backward = Batches(EXAMPLES, 3, seed=4), Batches(EXAMPLES, 3, seed=4)
    there = [forward.at(n) for n in range(10)]
    back = [backward.at(n) for n in reversed(range(10))]
    assert there == back[::-1]


def test_an_epoch_shows_every_example_once_and_the_next_in_another_order():
    seen = [p for n in range(14) for p in Batches(EXAMPLES, 1, seed=0).at(n).pictures]
    assert sorted(seen[:7]) == sorted(seen[7:]) == list(range(7))
    assert seen[:7] != seen[7:]


def test_captions_are_drawn_and_dropped():
    batches = Batches(EXAMPLES, 7, seed=0, caption_dropout=0.3)
    captions = [caption for n in range(100) for caption in batches.at(n).captions]
    assert {caption.split()[0] for caption in captions if caption} == {"a", "the"}
    assert captions.count("") / len(captions) == pytest.approx(0.3, abs=0.06)


def test_flips_come_only_where_asked():
    assert not any(any(Batches(EXAMPLES, 4, seed=0).at(n).flipped) for n in range(20))
    flips = [flip for n in range(100) for flip in Batches(EXAMPLES, 4, seed=0, flip=True).at(n).flipped]
    assert sum(flips) / len(flips) == pytest.approx(0.5, abs=0.08)


def test_schedules_start_after_the_warm_up_and_end_at_the_last_step():
    assert [rate_factor("constant", step, steps=10, warmup_steps=4) for step in (0, 3, 4, 9)] == [0.25, 1.0, 1.0, 1.0]
    assert rate_factor("linear", 5, steps=10, warmup_steps=0) == pytest.approx(0.5)
    assert rate_factor("cosine", 7, steps=10, warmup_steps=4) == pytest.approx(0.5)
    assert rate_factor("sqrt", 75, steps=100, warmup_steps=0) == pytest.approx(0.5)
