"""Words and LoRA between the contents that stages hand on and the model that holds them."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ...converters.embedding import Contents, Embedding
from ..train.lora import has_lora, lora_tensors
from ..train.parts import kohya_prefix, part_modules
from ..words.raw import to_raw, vectors_of_all
from .state import Run


def put_back(run: Run, contents: Contents) -> None:
    """What an earlier stage changed (rescale) goes into the model."""
    for key, rows in run.need_injection().rows.items():
        vectors = vectors_of_all(contents.embeddings, key, rows.values.shape[1])
        for word, own in zip(contents.embeddings, vectors, strict=True):
            rows.of(word.name).copy_(own)


def start_norms(run: Run) -> dict[str, Tensor]:
    """Encoder key to the norms of the rows as the run began, (rows,), in the order of the injected rows."""
    norms = {}
    for key, rows in run.need_injection().rows.items():
        began = torch.cat(vectors_of_all(run.start.embeddings, key, rows.values.shape[1]))
        norms[key] = began.norm(dim=1).to(rows.values.device)
    return norms


def as_left(run: Run, contents: Contents) -> Contents:
    """The contents with words and LoRA as the model has them now."""
    rest = contents.rest
    for part, module in part_modules(run.model).items():
        if has_lora(module):
            own = lora_tensors(module, kohya_prefix(run.model, part))
            rest = rest | {name: to_raw(tensor) for name, tensor in own.items()}
    return replace(contents, embeddings=tuple(_vectors(run, word) for word in contents.embeddings), rest=rest)


def _vectors(run: Run, word: Embedding) -> Embedding:
    rows = run.need_injection().rows
    return replace(word, vectors={key: to_raw(rows[key].of(word.name)) for key in word.vectors})
