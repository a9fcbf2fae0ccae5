"""A LoRA with `emb_params`, or `clip_l` and `clip_g`, at top level and no name for the embedding: ostris/ai-toolkit."""

from __future__ import annotations

from ..embedding import Contents, Embedding
from ..slots import KEYS, as_rows, is_rows, slots
from ..stored import Stored
from ..tensor import RawTensor
from . import bundled, cloneofsimo, keyed
from .keyed import FileData


def detect(file: Stored) -> bool:
    """Tensors of a LoRA and some that are named after an encoder."""
    return bool(_embeddings(file)) and file.is_lora and not bundled.detect(file) and not cloneofsimo.detect(file)


def read(file: Stored) -> Contents:
    """One embedding, named after the file."""
    vectors = {key: as_rows(tensor) for key, tensor in _embeddings(file).items()}
    rest = {key: tensor for key, tensor in file.tensors.items() if key not in vectors}
    return Contents((Embedding(file.stem, slots(vectors)),), rest, dict(file.metadata))


def write(contents: Contents) -> FileData:
    """The embedding's tensors at top level, with the LoRA's."""
    return {**contents.rest, **keyed.write(contents)[0]}, contents.metadata


def _embeddings(file: Stored) -> dict[str, RawTensor]:
    return {key: tensor for key, tensor in file.tensors.items() if key in KEYS and is_rows(tensor)}
