"""Token counts of texts with placeholders, and the embeddings that are truncated in them."""

from __future__ import annotations

from collections.abc import Mapping

from .initial import TokenizedTexts
from .placeholders import Replacer


def count_tokens(
    text: str, replacer: Replacer, sizes: Mapping[str, int], texts: TokenizedTexts, limit: int
) -> tuple[int, list[str]]:
    """Tokens of a text in one encoder, and the embeddings that do not fit within the limit at any occurrence.

    `sizes` are the numbers of vectors, `texts` the encoder's tokenizer.
    """
    total, end, beyond, seen = 0, 0, list[str](), set[str]()
    for found in replacer.find(text):
        total += len(texts.ids(text[end : found.start])) + sizes[found.embedding]
        end = found.end
        if total <= limit:
            seen.add(found.embedding)
        elif found.embedding not in seen:
            beyond.append(found.embedding)
    return total + len(texts.ids(text[end:])), beyond
