"""`string_to_param[<placeholder>]`: the original textual inversion, AUTOMATIC1111, HCP-Diffusion, older OneTrainer.

The other entries show the writer: a step or a name (A1111), neither (original), a name and no `string_to_token`
(HCP). A1111's images hold the same dict.
"""

from __future__ import annotations

from ..embedding import Contents, Embedding
from ..errors import ConvertError
from ..slots import as_rows, slots
from ..stored import Stored
from . import bundled, cloneofsimo

PREFIX = "string_to_param."


def detect(file: Stored, writer: str) -> bool:
    """`writer` is one of a1111, image, original, hcp."""
    if f"\n{PREFIX}" not in file.text or file.root not in ("dict", "ordered") or file.is_lora:
        return False
    return writer == _writer(file) and not bundled.detect(file) and not cloneofsimo.detect(file)


def read(file: Stored) -> Contents:
    """One embedding per entry. A single one is named after the file (an image has its name), several by placeholder."""
    entries = {name[len(PREFIX) :]: tensor for name, tensor in file.tensors.items() if name.startswith(PREFIX)}
    metadata = {key: value for key, value in file.metadata.items() if not key.startswith("string_to_token")}
    alone = metadata.get("name") or file.stem if file.container == "image" else file.stem
    embeddings = []
    for placeholder, tensor in entries.items():
        if not 1 <= len(tensor.shape) <= 2:
            raise ConvertError(f"{file.path}: string_to_param[{placeholder[:40]!r}] has the shape {tensor.shape}")
        vectors = slots({"string_to_param.*": as_rows(tensor)})
        embeddings.append(Embedding(alone if len(entries) == 1 else placeholder, vectors, metadata))
    return Contents(tuple(embeddings), {}, metadata)


def _writer(file: Stored) -> str:
    if file.container == "image":
        return "image"
    tokens = any(key.startswith("string_to_token") for key in (*file.metadata, *file.tensors))
    if tokens:
        return "a1111" if "name" in file.metadata or "step" in file.metadata else "original"
    return "hcp" if "name" in file.metadata else "original"
