"""What a run must prove of the model before it counts: taken before the first stage, held against the end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..errors import StageError
from ..files import tensor_hash
from ..models.load import Model


@dataclass(frozen=True, eq=False)
class Before:
    """The vocabularies by hash, and the very objects that must be in their places again."""

    vocabulary: dict[str, str]
    tables: dict[str, Any]
    tokenizers: dict[str, Any]


def remember_model(model: Model) -> Before:
    """Remember the encoders and tokenizers as they are before anything is injected."""
    return Before(
        {encoder.key: tensor_hash(encoder.table) for encoder in model.encoders},
        {encoder.key: _table(encoder) for encoder in model.encoders},
        {encoder.key: getattr(model.pipe, encoder.tokenizer_name) for encoder in model.encoders},
    )


def model_proofs(model: Model, before: Before) -> dict[str, Any]:
    """Whether each vocabulary is bit for bit what it was, and everything injected was taken out again."""
    back = all(
        _table(encoder) is before.tables[encoder.key]
        and getattr(model.pipe, encoder.tokenizer_name) is before.tokenizers[encoder.key]
        for encoder in model.encoders
    )
    unchanged = {
        encoder.key: tensor_hash(encoder.table) == before.vocabulary[encoder.key] for encoder in model.encoders
    }
    return {"vocabulary_unchanged": unchanged, "ejected_clean": back}


def require_proofs(proofs: dict[str, Any]) -> None:
    """A run that cannot prove what it did has failed: StageError."""
    changed = [key for key, same in proofs["vocabulary_unchanged"].items() if not same]
    if changed:
        raise StageError(f"the vocabulary of {', '.join(changed)} is not bit for bit what it was")
    if not proofs["ejected_clean"]:
        raise StageError("an encoder or tokenizer was not put back as it was")


def _table(encoder: Any) -> Any:
    return encoder.module.get_input_embeddings()
