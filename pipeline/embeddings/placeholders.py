"""Finds and replaces placeholders in captions and prompts.

A text is split into units: runs of letters, digits, `_` and combining marks; runs of whitespace; and single other
characters. A placeholder matches a sequence of its units, so `cat` is not in `category` nor in `my_cat`, but it is in
`cat's` and `(cat)`, and `<emblem>` is found next to anything. Whitespace of any length is the same. Case does not
matter, as CLIP's tokenizers lower-case every text and programs that load embeddings match the tokenized text. In
scripts without spaces a unit is a run of letters.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import cache, lru_cache
from typing import NamedTuple

_UNIT = re.compile(r"\w+|\s+|[^\w\s]")
_JOINER, _NON_JOINER = "\u200d", "\u200c"


class Found(NamedTuple):
    """One placeholder in a text: `text[start:end]` stands for `embedding`."""

    start: int
    end: int
    embedding: str


class Replacer:
    """Finds a set of placeholders; the time for a text does not depend on their number."""

    def __init__(self, embeddings: Iterable[str]) -> None:
        """ValueError when a placeholder is blank or two differ only in case and whitespace."""
        self.embeddings = tuple(dict.fromkeys(embeddings))
        self._lengths: dict[str, list[int]] = {}  # by first unit, longest first
        self._spelled: dict[tuple[str, ...], str] = {}
        for embedding in self.embeddings:
            units = spelling(embedding)
            if not units:
                raise ValueError(f"a placeholder must not be blank: {embedding!r}")
            if units in self._spelled:
                raise ValueError(f"two placeholders are the same in text: {self._spelled[units]!r} and {embedding!r}")
            self._spelled[units] = embedding
            lengths = self._lengths.setdefault(units[0], [])
            if len(units) not in lengths:
                lengths.append(len(units))
        for lengths in self._lengths.values():
            lengths.sort(reverse=True)

    def find(self, text: str) -> list[Found]:
        """Every placeholder in the text from left to right; the longest at each position. None overlap."""
        units = _units(text)
        keys = [key for _, _, key in units]
        found, at = [], 0
        while at < len(units):
            match = self._at(keys, at)
            if match is None:
                at += 1
                continue
            length, embedding = match
            found.append(Found(units[at][0], units[at + length - 1][1], embedding))
            at += length
        return found

    def _at(self, keys: list[str], at: int) -> tuple[int, str] | None:
        for length in self._lengths.get(keys[at], ()):
            units = tuple(keys[at : at + length])
            if len(units) == length and units in self._spelled:
                return length, self._spelled[units]
        return None

    def embeddings_in(self, text: str) -> list[str]:
        """The placeholders in the text, each once, in the order of their first occurrence."""
        return list(dict.fromkeys(found.embedding for found in self.find(text)))

    def count(self, text: str) -> dict[str, int]:
        """How often each placeholder that is in the text occurs."""
        numbers: dict[str, int] = {}
        for found in self.find(text):
            numbers[found.embedding] = numbers.get(found.embedding, 0) + 1
        return numbers

    def replace(self, text: str, texts: Mapping[str, str]) -> str:
        """The text with each placeholder replaced by its entry in `texts`, in one pass.

        A replacement is never searched again. A placeholder without an entry is unchanged, and not searched
        for shorter ones.
        """
        parts, end = [], 0
        for found in self.find(text):
            if found.embedding in texts:
                parts += [text[end : found.start], texts[found.embedding]]
                end = found.end
        return "".join([*parts, text[end:]])


def replace(text: str, texts: Mapping[str, str]) -> str:
    """The text with every key of `texts`, as a placeholder, replaced by its value."""
    return Replacer(texts).replace(text, texts)


@lru_cache(maxsize=100_000)  # called repeatedly for the same thousands of embeddings
def spelling(embedding: str) -> tuple[str, ...]:
    """The units by which a placeholder is found: two with the same spelling are indistinguishable."""
    return tuple(key for _, _, key in _units(embedding.strip()))


@lru_cache(maxsize=1024)  # a step asks several times for each of its captions
def _units(text: str) -> tuple[tuple[int, int, str], ...]:
    """(start, end, key) of every unit; equal keys mean equal text to a tokenizer."""
    if text.isascii():
        lower = text.lower()
        return tuple((m.start(), m.end(), " " if m[0].isspace() else m[0]) for m in _UNIT.finditer(lower))
    spans = [match.span() for match in _UNIT.finditer(text)]
    return tuple((start, end, _key(text[start:end])) for start, end in _merge_marks(text, spans))


def _merge_marks(text: str, spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Units with the marks and joiners that belong to them: combining accents, parts of one emoji."""
    merged: list[tuple[int, int]] = []
    for start, end in spans:
        if merged and _belongs_to(text[merged[-1][0] : merged[-1][1]], text[start]):
            merged[-1] = (merged[-1][0], end)
        else:
            merged.append((start, end))
    return merged


def _belongs_to(unit: str, character: str) -> bool:
    if unit[-1].isspace() or character.isspace():
        return False
    continues = unit[-1] == _JOINER or (_is_mark(unit[-1]) and _is_letter(unit[0]) and _is_letter(character))
    return continues or _is_mark(character)


@cache
def _is_mark(character: str) -> bool:
    from unicodedata import category

    return character in (_JOINER, _NON_JOINER) or category(character).startswith("M")


def _is_letter(character: str) -> bool:
    return character == "_" or character.isalnum()


def _key(unit: str) -> str:
    from unicodedata import normalize

    return " " if unit[0].isspace() else normalize("NFC", unit).lower()
