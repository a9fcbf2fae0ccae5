"""Prompts longer than a CLIP encoder reads at once: in chunks, each with begin and end token, as A1111 and ComfyUI.

A chunk has 75 tokens; the states of all chunks are concatenated, pooled is the first one's vector. The vectors of an
embedding are never split: what does not fit into a chunk begins the next. The programs differ in what else they move to
the next chunk: ComfyUI all tokens of one written word, A1111 what follows a comma within 20 tokens. Here a chunk is
filled up.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn

TOKENIZERS = ("tokenizer", "tokenizer_2")  # of the pipelines that encode in chunks
SPECIAL = 2  # begin and end token


@dataclass(eq=False)
class Chunks:
    """How many chunks the texts of a pipeline get: at least `least`, at most `most`; shared by all its tokenizers."""

    most: int
    least: int = 1

    def __deepcopy__(self, memo: Any) -> Chunks:
        return self


@dataclass(eq=False)
class Spans:
    """The vectors of each active embedding, by the id of its first one."""

    of: dict[int, int] = field(default_factory=dict)


def fill_chunks(ids: Sequence[int], spans: dict[int, int], size: int, most: int) -> list[list[int]]:
    """Ids in chunks of at most `size`, at least one and at most `most`; what is left is truncated.

    `spans` maps the first id of an embedding to its number of vectors, which stay together.
    """
    chunks: list[list[int]] = [[]]
    start = 0
    while start < len(ids):
        unit = ids[start : start + spans.get(ids[start], 1)]
        if chunks[-1] and len(chunks[-1]) + len(unit) > size:
            chunks.append([])
        chunks[-1] += unit[:size]
        start += len(unit)
    return chunks[:most]


class ChunkedTokenizer:
    """What `split_into_chunks` adds to the class of a tokenizer: padded ids of all chunks in one row.

    Calls without `padding="max_length"`, which pipelines encode no prompt with, are the tokenizer's own.
    """

    chunks: Chunks
    spans: Spans
    bos_token_id: int
    eos_token_id: int
    pad_token_id: int
    model_max_length: int

    def __call__(self, text: str | list[str], **options: Any) -> Any:
        """`input_ids` and `attention_mask`, (texts, chunks * length): each chunk has `model_max_length` ids."""
        if options.get("padding") != "max_length":
            return super().__call__(text, **options)  # type: ignore[misc]
        from transformers import BatchEncoding

        rows = [self._chunks_of(one) for one in ([text] if isinstance(text, str) else text)]
        count = max(self.chunks.least, *(len(row) for row in rows))
        length = self.model_max_length
        ids = torch.full((len(rows), count, length), self.pad_token_id)
        mask = torch.zeros_like(ids)
        for number, row in enumerate(rows):
            for index in range(count):
                own = [self.bos_token_id, *(row[index] if index < len(row) else ()), self.eos_token_id]
                ids[number, index, : len(own)] = torch.tensor(own)
                mask[number, index, : len(own)] = 1
        return BatchEncoding({"input_ids": ids.flatten(1), "attention_mask": mask.flatten(1)})

    def chunk_count(self, text: str) -> int:
        """How many chunks the text fills."""
        return len(self._chunks_of(text))

    def _chunks_of(self, text: str) -> list[list[int]]:
        found = super().__call__(text, add_special_tokens=False, verbose=False).input_ids  # type: ignore[misc]
        return fill_chunks(found, self.spans.of, self.model_max_length - SPECIAL, self.chunks.most)


def split_into_chunks(tokenizer: Any, encoder: nn.Module, chunks: Chunks) -> None:
    """Have a tokenizer and its CLIP encoder read prompts in chunks.

    The tokenizer gets a class of the same name, so that it is saved as before.
    """
    kind = type(tokenizer)
    tokenizer.chunks, tokenizer.spans = chunks, Spans()
    tokenizer.__class__ = type(kind.__name__, (ChunkedTokenizer, kind), {"__module__": kind.__module__})
    length, forward = int(tokenizer.model_max_length), encoder.forward

    @wraps(forward)
    def in_chunks(input_ids: Tensor, attention_mask: Tensor | None = None, **options: Any) -> Any:
        if input_ids.shape[1] <= length:
            return forward(input_ids, attention_mask=attention_mask, **options)
        count = input_ids.shape[1] // length
        mask = None if attention_mask is None else attention_mask.reshape(-1, length)
        return _joined(forward(input_ids.reshape(-1, length), attention_mask=mask, **options), count)

    encoder.forward = in_chunks


def chunks_of(tokenizer: Any) -> int:
    """How many chunks a tokenizer makes at most; 1 for one that makes none."""
    return tokenizer.chunks.most if hasattr(tokenizer, "chunks") else 1


def _joined(output: Any, count: int) -> Any:
    """The output for (texts * chunks) rows as one for texts: states concatenated, pooled vectors of the first chunk."""
    if isinstance(output, tuple):
        return tuple(_joined(one, count) for one in output)
    if isinstance(output, Tensor):
        return output[::count] if output.ndim == 2 else output.reshape(-1, count * output.shape[1], output.shape[2])
    return type(output)(**{name: _joined(one, count) for name, one in output.items()})


@contextmanager
def even_chunks(pipe: Any, texts: Sequence[str]) -> Iterator[int]:
    """Within it the pipeline encodes all texts to as many chunks as the longest of these needs in any encoder.

    Yields that number; 1 for a pipeline without chunks. Shorter texts get empty chunks, as in A1111.
    """
    known: list[Any] = [getattr(pipe, name, None) for name in TOKENIZERS]
    tokenizers = [one for one in known if hasattr(one, "chunks")]
    if not tokenizers:
        yield 1
        return
    chunks: Chunks = tokenizers[0].chunks
    before = chunks.least
    for one in tokenizers:
        replaced = map(getattr(one, "replace_placeholders", str), texts)  # of one with embeddings
        chunks.least = max(chunks.least, *map(one.chunk_count, replaced))
    try:
        yield chunks.least
    finally:
        chunks.least = before
