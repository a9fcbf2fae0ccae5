"""Words and LoRA in the data type of their files."""

from __future__ import annotations

from dataclasses import replace

from ...converters.dtypes import convert
from ...converters.embedding import Contents, Embedding
from ...converters.errors import ConvertError
from ...converters.tensor import RawTensor
from ..run.state import Run
from ..words.raw import from_raw, to_raw
from .tensors import DTYPES, NAMES


def in_dtype(contents: Contents, dtype: str, run: Run) -> Contents:
    """Everything as float32, float16 or bfloat16. What becomes zero is said; what would overflow is a ConvertError."""

    def converted(raw: RawTensor, what: str) -> RawTensor:
        made, lost = convert(raw, NAMES[DTYPES[dtype]], what)
        if lost:
            run.warnings.append(f"{what}: {lost} values are too small for {dtype} and became zero")
        return made

    def word_of(word: Embedding) -> Embedding:
        return replace(word, vectors={key: converted(raw, f"{word.name} {key}") for key, raw in word.vectors.items()})

    rest = {
        name: raw if name.endswith(".alpha") else _by_torch(raw, dtype, name) for name, raw in contents.rest.items()
    }
    return replace(contents, embeddings=tuple(word_of(word) for word in contents.embeddings), rest=rest)


def _by_torch(raw: RawTensor, dtype: str, name: str) -> RawTensor:
    """A LoRA's tensor in another type, rounded to nearest; ConvertError where a value would overflow."""
    before = from_raw(raw)
    after = before.to(DTYPES[dtype])
    if bool((after.isinf() & ~before.isinf()).any()):
        raise ConvertError(f"{name}: has values too large for {dtype}; write it as bfloat16 or float32")
    return to_raw(after)
