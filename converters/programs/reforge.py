"""Reading as reForge: embeddings by A1111's code, LoRAs by that of ComfyUI, which takes no embeddings from them."""

from __future__ import annotations

from .a1111 import reads
from .comfyui import reads_lora

__all__ = ["reads", "reads_lora"]
