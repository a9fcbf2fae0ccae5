"""The two values that converters and stages exchange: one trained embedding, and the contents of one file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property

from .file_range import FileRange, Origin, read_exactly
from .tensor import RawTensor


@dataclass(frozen=True, eq=False)
class Embedding:
    """One trained embedding.

    `name` is the text typed in a prompt (also the placeholder of captions). `vectors` maps an encoder key
    (`clip_l`, `clip_g`, `t5`, ...) to a RawTensor of shape (tokens, width); a key ending in `_out` holds vectors
    that replace an encoder's output and can never stand in for input vectors.
    """

    name: str
    vectors: dict[str, RawTensor]
    metadata: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Contents:
    """The contents of one file: trained embeddings, other tensors (`rest`: a LoRA's own), and metadata."""

    embeddings: tuple[Embedding, ...] = ()
    rest: dict[str, RawTensor] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)

    @cached_property
    def by_name(self) -> dict[str, Embedding]:
        """The embeddings by name."""
        return {embedding.name: embedding for embedding in self.embeddings}


def loaded(embeddings: Iterable[Embedding]) -> Iterator[Embedding]:
    """The same embeddings, each with its bytes in memory for its iteration; adjacent ones open their file once."""
    opened: Origin | None = None
    with ExitStack() as stack:
        for embedding in embeddings:
            ranges = [stored for tensor in embedding.vectors.values() if isinstance(stored := tensor.stored, FileRange)]
            ranges = [stored for stored in ranges if stored.cached is None]
            for stored in ranges:
                if stored.origin is not opened:
                    stack.close()
                    descriptor, opened = stack.enter_context(stored.origin.opened()), stored.origin
                if stored.cached is None:
                    _hold(ranges, stored, descriptor)
            yield embedding
            for stored in ranges:
                stored.cached = None


def _hold(ranges: list[FileRange], first: FileRange, descriptor: int) -> None:
    """Read a range together with the ranges that follow it directly in its file."""
    row = [first]
    for stored in sorted(ranges, key=FileRange.begin):
        last = row[-1]
        if stored.origin is first.origin and stored.cached is None and stored.offset == last.offset + last.length:
            row.append(stored)
    size = row[-1].offset + row[-1].length - first.offset
    data = memoryview(read_exactly(descriptor, first.offset, size, first.origin.path))
    for stored in row:
        stored.cached = data[stored.offset - first.offset : stored.offset - first.offset + stored.length]


def unload(embedding: Embedding) -> None:
    """Drop the bytes of an embedding from memory; they are read from its file again when needed."""
    for tensor in embedding.vectors.values():
        if isinstance(tensor.stored, FileRange):
            tensor.stored.cached = None
