"""Between tensors and the bytes of files."""

from __future__ import annotations

import torch
from torch import Tensor

from ...converters.embedding import Embedding
from ...converters.tensor import RawTensor

_NAMES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
_TYPES = {name: dtype for dtype, name in _NAMES.items()}


def to_raw(tensor: Tensor) -> RawTensor:
    """A float tensor as the bytes a file holds: a copy, so what happens to the tensor later does not show."""
    flat = tensor.detach().to("cpu", copy=True).contiguous()
    return RawTensor(_NAMES[flat.dtype], tuple(flat.shape), flat.reshape(-1).view(torch.uint8).numpy().tobytes())


def vectors_for(word: Embedding, key: str, width: int) -> Tensor:
    """Vectors of a word in one encoder, (tokens, width): none where it has no vectors for it."""
    return from_raw(word.vectors[key]) if key in word.vectors else torch.empty(0, width)


def from_raw(raw: RawTensor) -> Tensor:
    """A tensor of its own memory from the bytes of a file."""
    return torch.frombuffer(bytearray(raw.data), dtype=_TYPES[raw.dtype]).reshape(raw.shape)
