"""Which words have had all their training: by the stage's clock, or by the steps that they themselves were in."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ..recipe.model import StopAfter
from ..recipe.stop import OWN
from .clock import Clock, stopped


class Stops:
    """Tells of each word once that its training is over; what a step costs does not grow with the words that wait."""

    def __init__(self, rules: Mapping[str, StopAfter], recorded: Mapping[str, int] | None = None) -> None:
        """`recorded` has the step after which a word stopped in an earlier process of this run: it stops there again,
        whatever its rule makes of the clock now."""
        self.counts = {word: 0 for word, rule in rules.items() if rule.unit == OWN}
        self._rules = rules
        self._waiting: dict[str, list[tuple[StopAfter, str]]] = {}
        for word, rule in rules.items():
            if word in (recorded or {}) and rule.unit != OWN:
                rule = StopAfter(float((recorded or {})[word]), "steps")
            if rule.unit not in ("never", OWN):
                self._waiting.setdefault(rule.unit, []).append((rule, word))
        for waiting in self._waiting.values():
            waiting.sort(key=lambda pair: pair[0].value, reverse=True)

    def due(self, clock: Clock) -> list[str]:
        """Words whose time is over by the clock, in the batch or not."""
        found = []
        for waiting in self._waiting.values():
            while waiting and stopped(waiting[-1][0], clock):
                found.append(waiting.pop()[1])
        return found

    def counted(self, words: Iterable[str]) -> list[str]:
        """Count a step of these words; those that have had all of theirs now."""
        found = []
        for word in words:
            if word in self.counts:
                self.counts[word] += 1
                if self.counts[word] >= self._rules[word].value:
                    found.append(word)
        return found

    def short(self) -> list[tuple[str, int, float]]:
        """Words that have not had as many own steps as their rule gives them: how many they had, of how many."""
        return [
            (word, had, self._rules[word].value) for word, had in self.counts.items() if had < self._rules[word].value
        ]

    def state(self) -> dict[str, Any]:
        return {word: count for word, count in self.counts.items() if count}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.counts.update({word: int(count) for word, count in state.items() if word in self.counts})
