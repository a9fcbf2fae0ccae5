"""The two values that flow through converters and stages: one taught word, and all that one file holds."""

from __future__ import annotations

from dataclasses import dataclass, field

from .tensor import RawTensor


@dataclass(frozen=True, eq=False)
class Embedding:
    """One taught word.

    `name` is the text typed in a prompt (also the placeholder of captions). `vectors` maps an encoder key
    (`clip_l`, `clip_g`, `t5`, ...) to a RawTensor of shape (tokens, width); a key ending in `_out` holds vectors
    that replace an encoder's output and can never stand in for input vectors.
    """

    name: str
    vectors: dict[str, RawTensor]
    metadata: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Contents:
    """All that one file holds: taught words, the tensors that are none (`rest`: a LoRA's own), and metadata."""

    embeddings: tuple[Embedding, ...] = ()
    rest: dict[str, RawTensor] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)
