"""A model's tensors as bytes for a file, converted one at a time while it is written, to save memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from ...converters.dtypes import convert
from ...converters.embedding import Contents, Embedding
from ...converters.errors import ConvertError
from ...converters.file_range import LazyBytes
from ...converters.tensor import RawTensor, nbytes
from ..tensors import CODES, DTYPES, from_raw, to_raw
from ..text import count_of
from .context import ExportContext
from .layouts import Pieces


def raw_tensors(pieces: Pieces, dtype: torch.dtype, prefix: str = "") -> dict[str, RawTensor]:
    """Tensors for a file in `dtype`, rounded to nearest when they are written.

    Reading one raises ConvertError where a finite value would become infinite.
    """
    return {prefix + name: _raw(parts, dtype, prefix + name) for name, parts in pieces.items()}


def plain(state: Mapping[str, Tensor]) -> Pieces:
    """Tensors by their own names; of tied weights only the first name is kept."""
    seen: set[tuple[int, tuple[int, ...]]] = set()
    pieces: Pieces = {}
    for name, tensor in state.items():
        place = (tensor.data_ptr(), tuple(tensor.shape))
        if place not in seen:
            seen.add(place)
            pieces[name] = (tensor,)
    return pieces


def _raw(parts: Sequence[Tensor], dtype: torch.dtype, name: str) -> RawTensor:
    shape = (sum(part.shape[0] for part in parts), *parts[0].shape[1:]) if parts[0].ndim else ()
    data = LazyBytes(nbytes(CODES[dtype], shape), partial(_bytes, tuple(parts), dtype, name))
    return RawTensor(CODES[dtype], shape, data)


def _bytes(parts: tuple[Tensor, ...], dtype: torch.dtype, name: str) -> memoryview:
    """The bytes in C order; not copied where the tensor has this dtype already."""
    before = parts[0].detach() if len(parts) == 1 else torch.cat([part.detach() for part in parts])
    after = before.to("cpu", dtype).contiguous()
    if dtype == torch.float16 and bool((after.isinf().cpu() & ~before.isinf().cpu()).any()):
        raise ConvertError(f"{name}: has values too large for float16; write the model as bfloat16 or float32")
    return after.reshape(-1).view(torch.uint8).numpy().data


def in_dtype(contents: Contents, dtype: str, context: ExportContext) -> Contents:
    """Everything as float32, float16 or bfloat16. Warns of values that become zero; ConvertError for an overflow."""

    def converted(raw: RawTensor, what: str) -> RawTensor:
        made, lost = convert(raw, CODES[DTYPES[dtype]], what)
        if lost:
            context.warnings.append(f"{what}: {count_of(lost, 'value')} too small for {dtype} became zero")
        return made

    def embedding_of(embedding: Embedding) -> Embedding:
        return replace(
            embedding,
            vectors={key: converted(raw, f"{embedding.name} {key}") for key, raw in embedding.vectors.items()},
        )

    rest = {
        name: raw if name.endswith(".alpha") else _by_torch(raw, dtype, name) for name, raw in contents.rest.items()
    }
    return replace(contents, embeddings=tuple(embedding_of(embedding) for embedding in contents.embeddings), rest=rest)


def _by_torch(raw: RawTensor, dtype: str, name: str) -> RawTensor:
    """A LoRA's tensor in another type, rounded to nearest; ConvertError where a value would overflow."""
    before = from_raw(raw)
    after = before.to(DTYPES[dtype])
    if bool((after.isinf() & ~before.isinf()).any()):
        raise ConvertError(f"{name}: has values too large for {dtype}; write it as bfloat16 or float32")
    return to_raw(after)
