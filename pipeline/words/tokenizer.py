"""A tokenizer that spells taught words by slots, whose vectors stand behind the vocabulary."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import StageError
from .placeholders import Replacer


class WordTokenizer:
    """A tokenizer that knows the active words: each placeholder becomes its slots before the text is tokenized.

    Everything but the call and `tokenize` is the wrapped tokenizer's own.
    """

    def __init__(self, tokenizer: Any, replacer: Replacer) -> None:
        self._inner = copy.deepcopy(tokenizer)
        self._replacer = replacer
        self._slots: list[str] = []
        self._texts: dict[str, str] = {}
        self.first_slot = len(tokenizer)

    def activate(self, slots: Mapping[str, Sequence[int]]) -> None:
        """From now on each of these words is spelled by these slots; other placeholders stay plain text."""
        need = 1 + max((slot for numbers in slots.values() for slot in numbers), default=-1)
        if need > len(self._slots):
            self._add_slots(need - len(self._slots))
        self._texts = {word: "".join(self._slots[n] for n in numbers) for word, numbers in slots.items()}

    def _add_slots(self, count: int) -> None:
        from tokenizers import AddedToken

        names = [f"<|slot-{len(self._slots) + n}|>" for n in range(count)]
        self._inner.add_tokens([AddedToken(name, normalized=False, special=True) for name in names])
        given = self._inner.convert_tokens_to_ids(names)
        if given != [self.first_slot + len(self._slots) + number for number in range(count)]:
            raise StageError("this tokenizer does not number new tokens from its end on, so no word can be injected")
        self._slots += names

    def spelled(self, text: str) -> str:
        """The text with each active placeholder spelled by its slots."""
        return self._replacer.replace(text, self._texts)

    def __call__(self, text: str | list[str], **options: Any) -> Any:
        spelled = self.spelled(text) if isinstance(text, str) else [self.spelled(one) for one in text]
        return self._inner(spelled, **options)

    def tokenize(self, text: str, **options: Any) -> Any:
        return self._inner.tokenize(self.spelled(text), **options)

    def __len__(self) -> int:
        return len(self._inner)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)
