"""Every family's training works: an embedding gets nearer to a colour than its initial text, with a LoRA much nearer.

On tiny models that were trained to draw a few colours by name; see `colours`. A wrong sign, time scale, mask or lost
gradient in a family's training makes one of these fail. `python benchmarks/families.py` writes the numbers of all.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from colours import KNOWN, SETTINGS, measure
from projects import runnable


@pytest.mark.slow
@pytest.mark.parametrize("name", runnable(SETTINGS))
def test_an_embedding_gets_nearer_to_a_new_colour_than_its_initial_text(tmp_path: Path, name: str) -> None:
    setting = SETTINGS[name]
    found = measure(name, tmp_path, setting)
    assert found.known == tuple(KNOWN)
    assert found.embedding <= setting.at_most * found.before
    assert found.with_lora <= setting.at_most_with_lora * found.before
