"""Finds and replaces placeholders in captions and prompts.

A text is cut into units: embeddings (letters, digits, `_`, and the marks on them), runs of blanks, and single other
characters. A placeholder stands where its units stand in a row, so `cat` is not in `category` nor in `my_cat`, but it
is in `cat's` and `(cat)`, and `<emblem>` is found glued to anything. Blanks of any length are one blank. Case makes no
difference, as CLIP's tokenizers lower-case every text and the programs that load the embeddings match what those give.
In scripts without blanks an embedding is a whole run of letters.
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
    """Knows a set of placeholders; the work for a text does not grow with their number."""

    def __init__(self, embeddings: Iterable[str]) -> None:
        """ValueError when a placeholder is blank or two are the same embedding but for case and blanks."""
        self.embeddings = tuple(dict.fromkeys(embeddings))
        self._lengths: dict[str, list[int]] = {}  # of the placeholders that begin with a unit, longest first
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
        """Every placeholder in the text from left to right; where several begin, the longest. None overlap."""
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
        """The placeholders that the text holds, each once, in the order of their first place."""
        return list(dict.fromkeys(found.embedding for found in self.find(text)))

    def count(self, text: str) -> dict[str, int]:
        """How often the text holds each placeholder; those it does not hold are left out."""
        numbers: dict[str, int] = {}
        for found in self.find(text):
            numbers[found.embedding] = numbers.get(found.embedding, 0) + 1
        return numbers

    def replace(self, text: str, texts: Mapping[str, str]) -> str:
        """The text with each placeholder replaced by its entry in `texts`, in one pass.

        A replacement is never searched again. A placeholder without an entry stays as it is, and so does all of it:
        no shorter placeholder is looked for inside.
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


@lru_cache(maxsize=100_000)  # asked again and again for the same thousands of embeddings
def spelling(embedding: str) -> tuple[str, ...]:
    """The units by which a placeholder is recognised: two with the same spelling cannot be told apart."""
    return tuple(key for _, _, key in _units(embedding.strip()))


def _units(text: str) -> list[tuple[int, int, str]]:
    """(start, end, key) of every unit; equal keys mean equal text to a tokenizer."""
    if text.isascii():
        lower = text.lower()
        return [(m.start(), m.end(), " " if m[0].isspace() else m[0]) for m in _UNIT.finditer(lower)]
    spans = [match.span() for match in _UNIT.finditer(text)]
    return [(start, end, _key(text[start:end])) for start, end in _joined(text, spans)]


def _joined(text: str, spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Units with the marks and joiners that belong to them: an accent written apart, parts of one emoji."""
    joined: list[tuple[int, int]] = []
    for start, end in spans:
        if joined and _clings(text[joined[-1][0] : joined[-1][1]], text[start]):
            joined[-1] = (joined[-1][0], end)
        else:
            joined.append((start, end))
    return joined


def _clings(unit: str, character: str) -> bool:
    if unit[-1].isspace() or character.isspace():
        return False
    goes_on = unit[-1] == _JOINER or (_is_mark(unit[-1]) and _is_word(unit[0]) and _is_word(character))
    return goes_on or _is_mark(character)


@cache
def _is_mark(character: str) -> bool:
    from unicodedata import category

    return character in (_JOINER, _NON_JOINER) or category(character).startswith("M")


def _is_word(character: str) -> bool:
    return character == "_" or character.isalnum()


def _key(unit: str) -> str:
    from unicodedata import normalize

    return " " if unit[0].isspace() else normalize("NFC", unit).lower()
