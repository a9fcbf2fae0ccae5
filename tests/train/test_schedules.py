"""Random numbers depend on seed, purpose and step; learning rate schedules."""

import pytest
import torch

from pivotune.pipeline.recipe.options import ScheduleOptions
from pivotune.pipeline.recipe.typed import options_of
from pivotune.pipeline.rng import generator
from pivotune.pipeline.train.optimizers import schedule_factor


def test_generators_depend_on_seed_purpose_and_step():
    def draw(*key):
        return torch.rand(4, generator=generator(*key)).tolist()

    assert draw(1, "noise", 5) == draw(1, "noise", 5)
    assert len({tuple(draw(*key)) for key in [(1, "noise", 5), (2, "noise", 5), (1, "order", 5), (1, "noise", 6)]}) == 4


def factor(kind, step, *, steps, warmup_steps, **changes):
    return schedule_factor(
        options_of(ScheduleOptions, kind=kind, **changes), step, steps=steps, warmup_steps=warmup_steps
    )


def test_schedules_start_after_the_warm_up_and_end_at_the_last_step():
    assert [factor("constant", step, steps=10, warmup_steps=4) for step in (0, 3, 4, 9)] == [0.25, 1.0, 1.0, 1.0]
    assert factor("linear", 5, steps=10, warmup_steps=0) == pytest.approx(0.5)
    assert factor("cosine", 7, steps=10, warmup_steps=4) == pytest.approx(0.5)
    assert factor("sqrt", 75, steps=100, warmup_steps=0) == pytest.approx(0.5)


def test_piecewise_schedule():
    pieces = [[0.5, 0.1], [2, 0.4], [8, 0.0]]
    factors = [factor("piecewise", step, steps=10, warmup_steps=1, pieces=pieces) for step in range(10)]
    assert factors == [1.0, 1.0, 0.4, 0.4, 0.4, 0.1, 0.1, 0.1, 0.0, 0.0]
