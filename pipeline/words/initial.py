"""Initial text to token ids: cut to the wanted count, padded, or as many as the text has; per tokenizer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class InitialTokens:
    """What one encoder makes of an initial text. `ids` has `kept` ids of the text, then `padded` padding ids."""

    ids: tuple[int, ...]
    pieces: tuple[str, ...]
    kept: int
    cut: tuple[str, ...]
    padded: int


def tokenize_initial(tokenizer: Any, text: str, tokens: int | None, pad_with: str) -> InitialTokens:
    """Ids of `text` without special tokens, cut to `tokens` and padded with the first id of `pad_with`.

    The rule is OneTrainer's. With `tokens=None` the text decides; a text without a token then gives one padding id.
    Raises ValueError when padding is needed and `pad_with` has no token in this vocabulary.
    """
    ids: list[int] = tokenizer(text, add_special_tokens=False).input_ids if text.strip() else []
    count = tokens if tokens is not None else max(1, len(ids))
    kept = ids[:count]
    padded = count - len(kept)
    padding = tokenizer(pad_with, add_special_tokens=False).input_ids if padded else [0]
    if not padding:
        raise ValueError(f"the padding text {pad_with!r} has no token in this vocabulary")
    whole = (*kept, *[padding[0]] * padded)
    pieces = tokenizer.convert_ids_to_tokens
    return InitialTokens(whole, tuple(pieces(list(whole))), len(kept), tuple(pieces(ids[count:])), padded)
