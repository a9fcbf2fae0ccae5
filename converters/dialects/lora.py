"""A LoRA in any layout that carries no words."""

from __future__ import annotations

from ..embedding import Contents
from ..stored import Stored
from . import ai_toolkit, bundled, cloneofsimo


def detect(file: Stored) -> bool:
    """Tensors of a LoRA, and none of the three ways in which a LoRA carries words."""
    return file.is_lora and not any(other.detect(file) for other in (bundled, cloneofsimo, ai_toolkit))


def read(file: Stored) -> Contents:
    """All of it as `rest`."""
    return Contents((), dict(file.tensors), dict(file.metadata))
