"""Initial text to token ids: cut to the wanted count, padded, or as many as the text has; per tokenizer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
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


class Texts:
    """What one tokenizer makes of texts, each asked for once; those known beforehand in a single call."""

    def __init__(self, tokenizer: Any, known: Iterable[str] = ()) -> None:
        self.tokenizer = tokenizer
        texts = [text for text in dict.fromkeys(known) if text.strip()]
        self._ids: dict[str, list[int]] = dict(zip(texts, self._asked(texts), strict=True)) if texts else {}
        self._pieces: dict[int, str] = {}

    def ids(self, text: str) -> list[int]:
        """Ids without special tokens; none for a blank text. They belong to the table: not to be changed."""
        if text not in self._ids:
            self._ids[text] = self._asked(text) if text.strip() else []
        return self._ids[text]

    def _asked(self, text: str | list[str]) -> Any:
        return self.tokenizer(text, add_special_tokens=False, return_attention_mask=False, verbose=False).input_ids

    def pieces(self, ids: Sequence[int]) -> tuple[str, ...]:
        """How the vocabulary spells these ids."""
        new = [one for one in dict.fromkeys(ids) if one not in self._pieces]
        if new:
            self._pieces |= dict(zip(new, self.tokenizer.convert_ids_to_tokens(new), strict=True))
        return tuple(self._pieces[one] for one in ids)


def tokenize_initial(texts: Texts, text: str, tokens: int | None, pad_with: str) -> InitialTokens:
    """Ids of `text` without special tokens, cut to `tokens` and padded with the first id of `pad_with`.

    The rule is OneTrainer's. With `tokens=None` the text decides; a text without a token then gives one padding id.
    Raises ValueError when padding is needed and `pad_with` has no token in this vocabulary.
    """
    ids = texts.ids(text)
    count = tokens if tokens is not None else max(1, len(ids))
    kept = ids[:count]
    padded = count - len(kept)
    padding = texts.ids(pad_with) if padded else [0]
    if not padding:
        raise ValueError(f"the padding text {pad_with!r} has no token in this vocabulary")
    whole = (*kept, *[padding[0]] * padded)
    return InitialTokens(whole, texts.pieces(whole), len(kept), texts.pieces(ids[count:]), padded)
