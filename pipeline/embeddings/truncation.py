"""Token counts of texts with placeholders, and the embeddings that are truncated in them."""

from __future__ import annotations

from collections.abc import Mapping

from .initial import TokenizedTexts
from .placeholders import Replacer


def count_tokens(
    text: str, replacer: Replacer, sizes: Mapping[str, int], texts: TokenizedTexts, limit: int, chunks: int = 1
) -> tuple[int, list[str]]:
    """Tokens of a text in one encoder, and the embeddings that do not fit within the limit at any occurrence.

    `sizes` are the numbers of vectors, `texts` the encoder's tokenizer. The limit is that of all `chunks`; with several
    the tokens that an embedding leaves empty at the end of one count too (see `chunks.fill_chunks`).
    """
    chunk = limit // chunks
    total, end, beyond, seen = 0, 0, list[str](), set[str]()
    for found in replacer.find(text):
        total += len(texts.ids(text[end : found.start]))
        size, end = sizes[found.embedding], found.end
        if chunks > 1 and total % chunk + size > chunk:
            total += -total % chunk
        total += size
        if total <= limit and size <= chunk:
            seen.add(found.embedding)
        elif found.embedding not in seen:
            beyond.append(found.embedding)
    return total + len(texts.ids(text[end:])), beyond
