"""`{<placeholder>: vectors}`: diffusers' learned_embeds and custom diffusion, cloneofsimo's .ti.pt."""

from __future__ import annotations

from ..embedding import Contents, Embedding
from ..errors import ConvertError
from ..families import all_families
from ..slots import JOINED, KEYS, as_rows, slots
from ..stored import Stored
from ..tensor import READABLE, RawTensor
from . import bundled, cloneofsimo, xti
from .keyed import EMBEDDING, EMBEDDINGS, FileData

MOST = 1000  # files with more tensors are text encoders or other models


def detect(file: Stored) -> bool:
    """A dict of vectors of a known width, with names that are not encoders' keys.

    A file of our own may have any width.
    """
    tensors = file.tensors
    ours = EMBEDDINGS in file.metadata or (len(tensors) == 1 and EMBEDDING in file.metadata)
    if file.root not in ("dict", "ordered") or not tensors or file.is_lora or (len(tensors) > MOST and not ours):
        return False
    if not tensors.keys().isdisjoint(KEYS) or any(name.startswith("string_to_") for name in tensors):
        return False
    if bundled.detect(file) or cloneofsimo.detect(file) or xti.detect(file):
        return False
    weights = any(name.endswith((".weight", ".bias")) for name in tensors)
    return not weights and all(_vectors(tensor, ours) for tensor in tensors.values())


def read(file: Stored) -> Contents:
    """One embedding per tensor, for the encoder of its width."""
    metadata = {key: value for key, value in file.metadata.items() if key not in (EMBEDDING, EMBEDDINGS, "format")}
    embeddings = [Embedding(name, slots({"*": as_rows(tensor)}), metadata) for name, tensor in file.tensors.items()]
    return Contents(tuple(embeddings), {}, dict(file.metadata))


def _vectors(tensor: RawTensor, any_width: bool) -> bool:
    widths = {size for family in all_families().values() for size in family.widths.values()} | {JOINED[1]}
    return 1 <= len(tensor.shape) <= 2 and tensor.dtype in READABLE and (any_width or tensor.shape[-1] in widths)


def write(contents: Contents) -> FileData:
    """One tensor per embedding; ConvertError for vectors of several encoders, which need a file each."""
    tensors, metadata = {}, dict(contents.metadata)
    for embedding in contents.embeddings:
        if len(embedding.vectors) != 1:
            raise ConvertError(
                f"{embedding.name}: has vectors for {len(embedding.vectors)} encoders; use retarget --for"
            )
        (tensors[embedding.name],) = embedding.vectors.values()
    if len(tensors) == 1:
        metadata |= contents.embeddings[0].metadata | {EMBEDDING: contents.embeddings[0].name}
    return tensors, metadata
