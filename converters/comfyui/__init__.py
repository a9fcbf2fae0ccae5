"""Nodes for ComfyUI: LoRAs with embeddings in them, and embeddings of every program.

`pivotune comfyui install` puts a file into ComfyUI's `custom_nodes` that imports the two names below.
"""

from __future__ import annotations

from .nodes import LoadEmbedding, LoadLoraWithEmbeddings

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"]

NODE_CLASS_MAPPINGS = {"PivotuneLoadLora": LoadLoraWithEmbeddings, "PivotuneLoadEmbedding": LoadEmbedding}
NODE_DISPLAY_NAME_MAPPINGS = {
    "PivotuneLoadLora": "Load LoRA with embeddings",
    "PivotuneLoadEmbedding": "Load embedding",
}
