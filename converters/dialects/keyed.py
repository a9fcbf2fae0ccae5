"""Files of tensors named after encoders and nothing else; each spelling is a row in the registry."""

from __future__ import annotations

import json
import re
from pathlib import Path

from ..embedding import Contents, Embedding
from ..errors import ConvertError
from ..file_range import opened, read_exactly
from ..slots import as_rows, slots, split_out
from ..stored import Stored
from ..tensor import RawTensor, is_token_ids

EMBEDDING = "pivotune.embedding"  # metadata: the embedding's name as it was trained, which a file name may not allow
EMBEDDINGS = "pivotune.embeddings"  # metadata of a file of several embeddings: JSON of each embedding's own metadata
FileData = tuple[dict[str, RawTensor], dict[str, str]]  # tensors and metadata of one file

PARAMS = "special_params.json"  # beside cog-sdxl's embeddings.pti: {"TOK": "<s0><s1>"}


def detect(file: Stored, keys: frozenset[str]) -> bool:
    """A dict of tensors all of whose names are in `keys`."""
    return file.root in ("dict", "ordered") and bool(file.tensors) and file.tensors.keys() <= keys


def read(file: Stored) -> Contents:
    """One embedding, named by our own metadata or else by the file."""
    rows = {}
    for name, tensor in file.tensors.items():
        if len(file.tensors) > 1 and is_token_ids(tensor):
            continue  # ComfyUI's for a second tokenizer, beside the vectors
        if not 1 <= len(tensor.shape) <= 2:
            raise ConvertError(f"{file.path}: {name} has the shape {tensor.shape}, not (vectors, width)")
        rows[name] = as_rows(tensor)
    vectors = slots(rows)
    name = file.metadata.get(EMBEDDING) or file.stem
    metadata = {key: value for key, value in file.metadata.items() if key not in (EMBEDDING, "format")}
    return Contents((Embedding(name, vectors, metadata),), {}, dict(file.metadata))


def read_cog(file: Stored) -> Contents:
    """As `read`; if the folder has a `special_params.json`, the embeddings it names with the vectors it assigns."""
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
        raise ConvertError(f"{path}: not the JSON that cog-sdxl writes ({str(error)[:80]})") from error
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
    """One embedding: a tensor per encoder under its key, or named `alone` if there is one encoder."""
    if len(contents.embeddings) != 1:
        raise ConvertError("this dialect holds one embedding per file; use --dialect bundle or split them")
    (embedding,) = contents.embeddings
    one = len({split_out(key)[0] for key in embedding.vectors}) == 1
    tensors = {alone + split_out(key)[1] if one and alone else key: tensor for key, tensor in embedding.vectors.items()}
    return tensors, {**contents.metadata, **embedding.metadata, EMBEDDING: embedding.name}
