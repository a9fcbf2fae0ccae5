"""Arrays and values behind the curves, against numbers made by hand."""

from __future__ import annotations

import matplotlib
import numpy as np
import pytest

from pivotune.pipeline.report import facts as show
from pivotune.pipeline.report.curves import Line, envelope, noisy_curve, positions, smoothed, thinned, vector_lines
from pivotune.pipeline.report.embeddings import printable, spelled


def test_steps_are_counted_through_all_stages() -> None:
    x, borders = positions([{"stage": s, "step": n} for s, n in [(2, 1), (2, 2), (4, 1), (4, 2), (5, 1)]])
    assert x.tolist() == [1, 2, 3, 4, 5]
    assert borders == [2, 4]


def test_smoothing_ignores_values_that_are_not_finite() -> None:
    assert smoothed(np.array([1.0, np.nan, 3.0, 5.0]), 3).tolist() == [1, 2, 4, 4]
    assert np.isnan(smoothed(np.array([np.nan, np.inf]), 3)).all()
    assert smoothed(np.array([]), 3).tolist() == []


def test_thinning_keeps_both_ends() -> None:
    line = Line("", np.arange(1000.0), np.arange(1000.0))
    thin = thinned(line, 10)
    assert len(thin.x) == 10
    assert (thin.x[0], thin.x[-1]) == (0, 999)


def test_each_vector_gets_a_curve_with_a_short_name() -> None:
    rows = [{"embeddings": {"a": {"clip_l": {"norm": [n, n + 1]}}, "b": {"clip_l": {"norm": [n]}}}} for n in range(3)]
    lines = vector_lines([{}, *rows], np.arange(4.0), "norm")["clip_l"]
    assert [line.label for line in lines] == ["a 1", "a 2", "b"]
    assert lines[1].x.tolist() == [1, 2, 3]
    assert lines[1].y.tolist() == [1, 2, 3]


def test_the_envelope_covers_curves_with_different_steps() -> None:
    low, middle, high = envelope(
        [Line("", np.array([0.0, 1.0]), np.array([1.0, np.nan])), Line("", np.array([0.0]), np.array([3.0]))]
    )
    assert (low.y.tolist(), middle.y.tolist(), high.y.tolist()) == ([1], [2], [3])


def test_drawing_neither_changes_nor_uses_matplotlib_settings() -> None:
    x = np.arange(1.0, 5)
    plain = noisy_curve("a", "t", x, x, [])
    with matplotlib.rc_context({"axes.facecolor": "red", "font.size": 30}):
        before = dict(matplotlib.rcParams)
        assert noisy_curve("a", "t", x, x, []) == plain
        assert dict(matplotlib.rcParams) == before
    assert "<style" not in plain
    assert "var(--c0)" in plain


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.39123, "0.391"),
        (1234.5, "1,234"),
        (-0.5, "−0.500"),
        (0, "0.00"),
        (1e-9, "1.00e-09"),
        (None, "–"),
        (float("nan"), "not finite"),
    ],
)
def test_numbers_are_formatted(value: float | None, text: str) -> None:
    assert show.number(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.01, "< 0.1 s"), (9.94, "9.9 s"), (59.6, "1 min 00 s"), (3725, "1 h 02 min"), (None, "–")]
)
def test_durations_are_formatted(seconds: float | None, text: str) -> None:
    assert show.duration(seconds) == text


def test_tokens_are_shown_as_text() -> None:
    assert spelled(["ring</w>", "embl", "*</w>", "<|endoftext|>"]) == ["ring", "embl-", "*", "<|endoftext|>"]
    assert spelled(["▁ring", "ing"]) == ["ring", "ing"]
    assert printable("a\x00b") == "a\\x00b"
