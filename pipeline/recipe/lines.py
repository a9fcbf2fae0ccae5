"""Line numbers of the keys of a TOML document that a TOML parser has already accepted."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable

import tomli

_PART = re.compile(r'[A-Za-z0-9_-]+|"(?:[^"\\\n]|\\.)*"|\'[^\'\n]*\'')
_SKIP = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_LONG = r'"""(?:[^\\]|\\.)*?"""(?:""|"(?!"))?|\'\'\'.*?\'\'\'(?:\'\'|\'(?!\'))?'
_STRING = re.compile(_LONG + r'|"(?:[^"\\\n]|\\.)*"|\'[^\'\n]*\'', re.S)
_SCALAR = re.compile(r"[^,\]}\n#]*")


def key_lines(text: str) -> dict[tuple[str | int, ...], int]:
    """Every path, such as ("stage", 1, "steps"), with its line counted from 1. Nesting is followed by recursion."""
    locator = _Locator(text.replace("\r\n", "\n"))
    locator.document()
    return locator.lines


class _Locator:
    def __init__(self, text: str) -> None:
        self.text = text
        self.ends = [match.start() for match in re.finditer("\n", text)]
        self.lines: dict[tuple[str | int, ...], int] = {}
        self.counts: dict[tuple[str | int, ...], int] = {}  # arrays of tables: index of the newest

    def document(self) -> None:
        base: tuple[str | int, ...] = ()
        pos = self.skip(0)
        while pos < len(self.text):
            if self.text[pos] == "[":
                base, pos = self.header(pos)
            else:
                pos = self.pair(base, pos)
            pos = self.skip(pos)

    def header(self, start: int) -> tuple[tuple[str | int, ...], int]:
        many = self.text.startswith("[[", start)
        parts, pos = self.key(start + 1 + many)
        base: tuple[str | int, ...] = ()
        for index, part in enumerate(parts):
            base = (*base, part)
            self.mark(base, start)
            if many and index == len(parts) - 1:
                self.counts[base] = self.counts.get(base, -1) + 1
            if base in self.counts:
                base = (*base, self.counts[base])
                self.mark(base, start)
        return base, pos + 1 + many

    def pair(self, base: tuple[str | int, ...], start: int) -> int:
        parts, pos = self.key(start)
        for index in range(len(parts)):
            self.mark((*base, *parts[: index + 1]), start)
        return self.value((*base, *parts), self.skip(pos + 1))

    def value(self, path: tuple[str | int, ...], pos: int) -> int:
        if self.text[pos] == "{":
            return self.inside(pos, "}", lambda _, at: self.pair(path, at))
        if self.text[pos] == "[":
            return self.inside(pos, "]", lambda index, at: self.item((*path, index), at))
        match = _STRING.match(self.text, pos) or _SCALAR.match(self.text, pos)
        assert match is not None  # _SCALAR matches everywhere
        return match.end()

    def inside(self, pos: int, end: str, read: Callable[[int, int], int]) -> int:
        pos, index = self.skip(pos + 1), 0
        while self.text[pos] != end:
            pos, index = self.skip(read(index, pos)), index + 1
            if self.text[pos] == ",":
                pos = self.skip(pos + 1)
        return pos + 1

    def item(self, path: tuple[str | int, ...], pos: int) -> int:
        self.mark(path, pos)
        return self.value(path, pos)

    def key(self, pos: int) -> tuple[list[str], int]:
        parts: list[str] = []
        while True:
            match = _PART.match(self.text, self.skip(pos))
            assert match is not None  # the parser has accepted the key
            raw = match.group()
            parts.append(tomli.loads("k=" + raw)["k"] if raw[0] in "\"'" else raw)
            pos = self.skip(match.end())
            if self.text[pos] != ".":
                return parts, pos
            pos += 1

    def skip(self, pos: int) -> int:
        match = _SKIP.match(self.text, pos)
        assert match is not None  # matches the empty text
        return match.end()

    def mark(self, path: tuple[str | int, ...], pos: int) -> None:
        self.lines.setdefault(path, bisect_right(self.ends, pos - 1) + 1)
