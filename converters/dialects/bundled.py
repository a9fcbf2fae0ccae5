"""`bundle_emb.<name>.<key>` in a LoRA: A1111, OneTrainer, LyCORIS and community scripts."""

from __future__ import annotations

from ..bundle import PREFIX, embeddings_of, parse, tensors_of
from ..embedding import Contents
from ..stored import Stored
from .keyed import FileData


def detect(file: Stored) -> bool:
    """A dict with at least one tensor that has an embedding and a key in its name."""
    return file.root in ("dict", "ordered") and f"\n{PREFIX}" in file.text and any(map(parse, file.tensors))


def read(file: Stored) -> Contents:
    """The embeddings, and the LoRA's tensors as `rest`. Stray scalars of LyCORIS' packer stay in `rest`."""
    embeddings, rest = embeddings_of(file.tensors)
    return Contents(embeddings, rest, dict(file.metadata))


def write(contents: Contents) -> FileData:
    """All tensors under the names of A1111 and OneTrainer (`clip_l`, not `emb_params`)."""
    return tensors_of(contents), contents.metadata
