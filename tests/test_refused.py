"""Refused inputs are counted as refused, tracebacks as faults."""

from __future__ import annotations

import refused
from bad_images import BROKEN

from pivotune.pipeline.errors import StageError


def raising(error: Exception) -> bool:
    raise error


def test_a_traceback_is_no_refusal(capsys):
    assert refused.outcome(lambda: raising(StageError("no"))) == refused.REFUSED
    assert refused.outcome(lambda: raising(TypeError("ours"))) == refused.FAULT
    assert "TypeError: ours" in capsys.readouterr().err
    assert [refused.outcome(lambda wrong=wrong: wrong) for wrong in (True, False)] == [refused.REFUSED, refused.READ]


def test_recipes_and_images_are_refused_without_a_traceback(tmp_path):
    found = refused.recipes(30, 1)
    assert found[refused.FAULT] == 0
    assert found[refused.REFUSED] >= 40
    found = refused.images(tmp_path, 30, 1)
    assert found[refused.FAULT] == 0
    assert found[refused.REFUSED] >= len(BROKEN)
