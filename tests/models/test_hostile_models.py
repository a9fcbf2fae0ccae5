"""Forty hostile models, images and captions, by the script that makes hundreds (tests/hostile/run.py)."""

import random
import sys
from dataclasses import replace

import pytest
from click.testing import CliRunner
from hostile.case import attack
from hostile.models import cases

from pivotune.pipeline.cli.main import pivotune


@pytest.mark.skipif(sys.platform != "linux", reason="the attacks are watched by /proc and fork")
def test_check_handles_hostile_inputs(tmp_path):
    """No traceback, no hang, no file read, written or deleted elsewhere."""
    case = next(cases(random.Random(11)))
    case.arrange(tmp_path)
    CliRunner().invoke(pivotune, ["check", str(tmp_path / "recipe.toml")])  # imports what each fork would import again
    made, codes = cases(random.Random(11)), set()
    for _ in range(40):
        case = replace(next(made), arguments=("check", "recipe.toml"))
        outcome = attack(case, tmp_path / "sandbox")
        assert not outcome.faults, f"{case.name}: {outcome.text}"
        codes.add(outcome.code)
    assert codes == {0, 1}
