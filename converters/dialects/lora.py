"""A LoRA in any layout, without embeddings."""

from __future__ import annotations

from ..embedding import Contents
from ..errors import ConvertError
from ..stored import Stored
from . import ai_toolkit, bundled, cloneofsimo
from .keyed import FileData


def detect(file: Stored) -> bool:
    """Tensors of a LoRA, without embeddings in any of the three dialects of LoRAs."""
    return file.is_lora and not any(other.detect(file) for other in (bundled, cloneofsimo, ai_toolkit))


def read(file: Stored) -> Contents:
    """All of it as `rest`."""
    return Contents((), dict(file.tensors), dict(file.metadata))


def write(contents: Contents) -> FileData:
    """The tensors as they are; ConvertError if there are embeddings."""
    if contents.embeddings:
        raise ConvertError("a LoRA that holds embeddings is a bundle")
    return dict(contents.rest), contents.metadata
