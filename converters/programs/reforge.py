"""Reading as reForge: embeddings by A1111's code, LoRAs by that of ComfyUI, which takes no embeddings from them."""

from __future__ import annotations

from ..stored import Stored
from .a1111 import reads_safe
from .comfyui import reads_lora
from .reading import REFUSED, Reading, only_weights, refused

__all__ = ["reads", "reads_lora"]


def reads(file: Stored, widths: dict[str, int]) -> Reading:
    """As A1111, but pickles are for torch to check, not for A1111's own list."""
    return reads_safe(file, widths) if only_weights(file) else refused(REFUSED)
