"""What was read from the disk for a check, kept until its end: a recipe may be looked at in several ways."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from ..errors import StageError

P = ParamSpec("P")
T = TypeVar("T")


class Once:
    """Asks a function once for the same arguments; what it raised as StageError it raises again."""

    def __init__(self) -> None:
        self._told: dict[tuple[Any, str], Any] = {}

    def __call__(self, ask: Callable[P, T], *arguments: P.args, **options: P.kwargs) -> T:
        """`arguments` are told apart by how they are spelt (`repr`)."""
        key = (ask, repr((arguments, options)))
        if key not in self._told:
            try:
                self._told[key] = ask(*arguments, **options)
            except StageError as error:
                self._told[key] = error
        told = self._told[key]
        if isinstance(told, StageError):
            raise told
        answer: T = told
        return answer
