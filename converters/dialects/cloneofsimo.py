"""A LoRA with one vector a token at top level, marked in the metadata: `metadata["<s1>"] == "<embed>"`.

FileData by cloneofsimo/lora (lora_diffusion/lora.py, EMBED_FLAG); files of tokens alone exist as well.
"""

from __future__ import annotations

from ..embedding import Contents, Embedding
from ..errors import ConvertError
from ..slots import KEYS, as_rows, is_rows, slots
from ..stored import Stored
from ..tensor import RawTensor
from . import bundled
from .keyed import FileData

FLAG = "<embed>"


def detect(file: Stored) -> bool:
    """The metadata has the flag under the name of a tensor that is not an encoder's key."""
    return file.root in ("dict", "ordered") and bool(_flagged(file)) and not bundled.detect(file)


def read(file: Stored) -> Contents:
    """One embedding per token; their flags are removed from the metadata, which also holds the LoRA's structure."""
    names = _flagged(file)
    embeddings = tuple(
        Embedding(name, slots({"*": as_rows(tensor)})) for name, tensor in file.tensors.items() if name in names
    )
    rest = {name: tensor for name, tensor in file.tensors.items() if name not in names}
    return Contents(embeddings, rest, {key: value for key, value in file.metadata.items() if key not in names})


def write(contents: Contents) -> FileData:
    """Vectors at top level, flagged in the metadata. Raises ConvertError for several vectors or encoders."""
    tensors, metadata = dict(contents.rest), dict(contents.metadata)
    for embedding in contents.embeddings:
        if len(embedding.vectors) != 1 or next(iter(embedding.vectors.values())).shape[0] != 1:
            raise ConvertError(f"{embedding.name}: this LoRA format has one vector per embedding, for one encoder")
        vector = next(iter(embedding.vectors.values()))
        tensors[embedding.name] = RawTensor(vector.dtype, vector.shape[1:], vector.stored)
        metadata[embedding.name] = FLAG
    return tensors, metadata


def _flagged(file: Stored) -> set[str]:
    flagged = {key for key, value in file.metadata.items() if value == FLAG}
    return {name for name in flagged & file.tensors.keys() if name not in KEYS and is_rows(file.tensors[name])}
