"""The answer of one program to one file."""

from __future__ import annotations

from typing import NamedTuple

ORDER = ("yes", "partly", "not known", "no")  # best first
UNTYPED = "its prompts cannot contain this name; rename the file"


class Verdict(NamedTuple):
    """`loads` is one of ORDER; `prompt` is what the user types, empty if nothing loads; `notes` say why.

    `after` says what must follow the prompt.
    """

    loads: str
    prompt: str
    notes: tuple[str, ...] = ()
    after: str = ""
