"""dtypes, and tensors to and from the bytes of files."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..converters.embedding import Embedding
from ..converters.tensor import RawTensor

DTYPES: dict[str, torch.dtype] = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
CODES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}  # of safetensors
_BY_CODE = {code: dtype for dtype, code in CODES.items()}


def to_raw(tensor: Tensor) -> RawTensor:
    """A float tensor as the bytes a file holds: a copy, independent of later changes of the tensor."""
    flat = tensor.detach().to("cpu", copy=True).contiguous()
    return RawTensor(CODES[flat.dtype], tuple(flat.shape), flat.reshape(-1).view(torch.uint8).numpy().tobytes())


def to_raw_each(tensor: Tensor, counts: Sequence[int]) -> list[RawTensor]:
    """The rows of a table as `to_raw` makes them, the first `counts[0]` for the first embedding and so on."""
    table = to_raw(tensor)
    size, width = len(table.data) // max(1, len(tensor)), tensor.shape[1]
    made, start = [], 0
    for count in counts:
        made.append(RawTensor(table.dtype, (count, width), table.data[start * size : (start + count) * size]))
        start += count
    return made


def vectors_of_all(embeddings: Sequence[Embedding], key: str, width: int) -> tuple[Tensor, ...]:
    """`vectors_for` of each of these embeddings, as views of one table, so that thousands cost one copy."""
    counts = [embedding.vectors[key].shape[0] if key in embedding.vectors else 0 for embedding in embeddings]
    raws = [embedding.vectors[key] for embedding in embeddings if key in embedding.vectors]
    if len({raw.dtype for raw in raws}) != 1:  # none, or of several dtypes
        return tuple(vectors_for(embedding, key, width) for embedding in embeddings)
    table = RawTensor(raws[0].dtype, (sum(counts), width), b"".join(raw.data for raw in raws))
    return from_raw(table).split(counts)


def vectors_for(embedding: Embedding, key: str, width: int) -> Tensor:
    """Vectors of an embedding in one encoder, (tokens, width); no rows if it has none for it."""
    return from_raw(embedding.vectors[key]) if key in embedding.vectors else torch.empty(0, width)


def from_raw(raw: RawTensor) -> Tensor:
    """A tensor with its own memory from the bytes of a file."""
    return torch.frombuffer(bytearray(raw.data), dtype=_BY_CODE[raw.dtype]).reshape(raw.shape)
