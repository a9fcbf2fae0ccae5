"""The exceptions for users, which the command line turns into a message and exit code 1, and text for messages."""

from __future__ import annotations

MOST = 2000  # characters of a message: files hold names of any length


def printable(text: str) -> str:
    """Text from strangers' files on one line: no control characters that a terminal would obey."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text)


def count_of(count: float, noun: str, nouns: str = "") -> str:
    """A number with its noun: `1 image`, `1,234 images`; `nouns` is a plural that does not just end in `s`."""
    number = f"{count:,}" if isinstance(count, int) else f"{count:.4g}"
    return f"{number} {noun if number == '1' else nouns or noun + 's'}"


class ConvertError(Exception):
    """A file cannot be read or written as asked; the message names the file, what is wrong and the way out."""

    def __init__(self, message: str) -> None:
        text = printable(message)
        super().__init__(text if len(text) <= MOST else f"{text[: MOST // 2]} … {text[-MOST // 2 :]}")


class NothingToDo(ConvertError):
    """A file without what is asked for: of no concern where it only lies among files that have some."""


class PlainImage(NothingToDo):
    """An image with no embedding in it."""
