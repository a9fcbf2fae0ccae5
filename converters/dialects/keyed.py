"""Tensors that are called like encoders and nothing else; each spelling is a row in the registry."""

from __future__ import annotations

import json
import re
from pathlib import Path

from ..embedding import Contents, Embedding
from ..errors import ConvertError
from ..file_range import opened, read_exactly
from ..slots import as_rows, slots, split_out
from ..stored import Stored
from ..tensor import RawTensor

EMBEDDING = "pivotune.embedding"  # metadata: the embedding as it was trained, which a file name may not be able to hold
EMBEDDINGS = "pivotune.embeddings"  # metadata of a file of several embeddings: JSON of each embedding's own metadata
FileData = tuple[dict[str, RawTensor], dict[str, str]]  # tensors and metadata of one file

PARAMS = "special_params.json"  # beside cog-sdxl's embeddings.pti: {"TOK": "<s0><s1>"}


def detect(file: Stored, keys: frozenset[str]) -> bool:
    """A dict of tensors, all of them called by `keys`."""
    return file.root in ("dict", "ordered") and bool(file.tensors) and file.tensors.keys() <= keys


def read(file: Stored) -> Contents:
    """One embedding, called as our own metadata says, else like the file."""
    rows = {}
    for name, tensor in file.tensors.items():
        if not 1 <= len(tensor.shape) <= 2:
            raise ConvertError(f"{file.path}: {name} has the shape {tensor.shape}, and rows of vectors are wanted")
        rows[name] = as_rows(tensor)
    vectors = slots(rows)
    name = file.metadata.get(EMBEDDING) or file.stem
    metadata = {key: value for key, value in file.metadata.items() if key not in (EMBEDDING, "format")}
    return Contents((Embedding(name, vectors, metadata),), {}, dict(file.metadata))


def read_cog(file: Stored) -> Contents:
    """As `read`; if `special_params.json` lies beside the file, the embeddings that it names with the rows it gives
    them.
    """
    contents = read(file)
    vectors = contents.embeddings[0].vectors
    embeddings = []
    for name, rows in _special_params(file.path.parent / PARAMS).items():
        if rows and max(rows) < min(tensor.shape[0] for tensor in vectors.values()):
            embeddings.append(Embedding(name, {key: _picked(tensor, rows) for key, tensor in vectors.items()}))
    return Contents(tuple(embeddings) or contents.embeddings, {}, contents.metadata)


def _special_params(path: Path) -> dict[str, list[int]]:
    if not path.is_file():
        return {}
    with opened(path) as (descriptor, origin):
        text = read_exactly(descriptor, 0, min(origin.size, 1 << 16), path)
    try:
        loaded = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConvertError(f"{path}: is not the JSON that cog-sdxl writes ({str(error)[:80]})") from error
    if not isinstance(loaded, dict):
        return {}
    return {
        name: [int(number) for number in re.findall(r"<s(\d{1,6})>", value)]
        for name, value in loaded.items()
        if isinstance(value, str)
    }


def _picked(tensor: RawTensor, rows: list[int]) -> RawTensor:
    size, data = len(tensor.stored) // tensor.shape[0], tensor.data
    picked = b"".join(bytes(data[row * size : (row + 1) * size]) for row in rows)
    return RawTensor(tensor.dtype, (len(rows), *tensor.shape[1:]), picked)


def write(contents: Contents, alone: str = "emb_params") -> FileData:
    """One embedding: a tensor an encoder under the encoder's key, or called `alone` if there is one (and `alone` a
    name).
    """
    if len(contents.embeddings) != 1:
        raise ConvertError("such a file holds one embedding, not several")
    (embedding,) = contents.embeddings
    one = len({split_out(key)[0] for key in embedding.vectors}) == 1
    tensors = {alone + split_out(key)[1] if one and alone else key: tensor for key, tensor in embedding.vectors.items()}
    return tensors, {**contents.metadata, **embedding.metadata, EMBEDDING: embedding.name}
