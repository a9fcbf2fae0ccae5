"""What a launcher sets for DeepSpeed, and the tests that need it."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec

import pytest

ZERO = {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "2"}
needs_deepspeed = pytest.mark.skipif(
    find_spec("deepspeed") is None, reason="DeepSpeed is not installed: pip install 'pivotune[deepspeed]'"
)


def imported() -> None:
    """Import what DeepSpeed imports late, once, so that forks of this process need not."""
    import_module("deepspeed.runtime.zero.muon.muon_optimizer")
