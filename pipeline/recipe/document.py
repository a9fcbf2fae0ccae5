"""Opens a recipe: finds and reads the file, parses it, and keeps the line of every key."""

from __future__ import annotations

import os
import re
import stat
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import tomli

from ..text import did_you_mean
from .backslashes import advice, advice_for, changed_paths
from .problem import KeyPath, Problem, key_text

_PART = re.compile(r'[A-Za-z0-9_-]+|"(?:[^"\\\n]|\\.)*"|\'[^\'\n]*\'')
_SKIP = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_LONG = r'"""(?:[^\\]|\\.)*?"""(?:""|"(?!"))?|\'\'\'.*?\'\'\'(?:\'\'|\'(?!\'))?'
_STRING = re.compile(_LONG + r'|"(?:[^"\\\n]|\\.)*"|\'[^\'\n]*\'', re.S)
_SCALAR = re.compile(r"[^,\]}\n#]*")


def key_lines(text: str) -> dict[tuple[str | int, ...], int]:
    """The line, counted from 1, of every key path such as ("stage", 1, "steps"). Recursive in the nesting depth."""
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


LARGEST = 1_000_000  # bytes; a recipe of a thousand embeddings has about 200,000
DEEPEST = 16  # levels of nesting
_DEPTH = "a recipe needs 4 levels"


class Unreadable(Exception):
    """The recipe cannot be read or parsed; `problem` says why."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.text)
        self.problem = problem


@dataclass(frozen=True, eq=False)
class Document:
    """A parsed, unchecked recipe. `overridden` maps a key path to the --set option that set it.

    `origins` has file and line of tables from elsewhere (`embeddings_from`). `original_paths` maps items of lists to
    their index before invalid items were dropped.
    """

    path: Path
    text: str
    data: dict[str, Any]
    overridden: dict[KeyPath, str] = field(default_factory=dict)
    origins: dict[KeyPath, tuple[str, int]] = field(default_factory=dict)
    original_paths: dict[KeyPath, KeyPath] = field(default_factory=dict)

    @cached_property
    def lines(self) -> dict[KeyPath, int]:
        """The line of every key in the file."""
        return key_lines(self.text)

    def original_path(self, path: KeyPath) -> KeyPath:
        """The key path in the recipe as it was read."""
        return (*self.original_paths.get(path[:2], path[:2]), *path[2:])

    def problem(self, path: KeyPath, text: str, severity: str = "error") -> Problem:
        """A problem at a key path, with the line of the nearest key in the file, or the --set option that caused it."""
        if path[:2] in self.origins:
            file, line = self.origins[path[:2]]
            return Problem(severity, line, key_text(path[2:]), text, file)
        path = self.original_path(path)
        for end in range(len(path), 0, -1):
            if path[:end] in self.overridden:
                return Problem(severity, 0, f"--set {self.overridden[path[:end]]}", text)
        for written, by in self.overridden.items():
            if written[: len(path)] == path and path not in self.lines:  # the whole table comes from --set
                return Problem(severity, 0, f"--set {by}", text)
        line = next((self.lines[path[:end]] for end in range(len(path), 0, -1) if path[:end] in self.lines), 1)
        return Problem(severity, line, key_text(path), text)


def shipped_folder() -> Path:
    """The folder of the shipped recipes."""
    from importlib.resources import files

    return Path(str(files("pivotune.recipes")))


def shipped() -> dict[str, Path]:
    """The shipped recipes, by name."""
    return {path.stem: path for path in sorted(shipped_folder().glob("*.toml"), key=lambda path: path.stem)}


def find(path_or_name: str | Path) -> Path:
    """The file at this path, or else the shipped recipe of this name. Raises Unreadable.

    A folder of the same name (a run folder, for instance) does not hide the shipped recipe.
    """
    path, name = Path(path_or_name).expanduser(), str(path_or_name)
    try:
        exists = os.path.lexists(path)
    except ValueError:
        exists = False
    if exists and not (path.is_dir() and name in shipped()):
        return path.absolute()
    if name in shipped():
        return shipped()[name]
    hint = did_you_mean(name, shipped()) if os.sep not in name and not path.suffix else ""
    raise Unreadable(Problem("error", 0, "", f"no such file, and no shipped recipe of this name{hint}"))


_OTHERS = (
    ("OneTrainer", re.compile(r'^\s*\{.*"(training_method|additional_embeddings|concept_file_name)"', re.S)),
    ("kohya's scripts", re.compile(r'^\s*\{.*"(pretrained_model_name_or_path|train_data_dir)"', re.S)),
    ("kohya's scripts", re.compile(r"^(pretrained_model_name_or_path|network_module|dataset_config)\s*=", re.M)),
    ("kohya's scripts", re.compile(r"^\[\[datasets(\.subsets)?\]\]", re.M)),
    ("ai-toolkit", re.compile(r"^job\s*:.*^config\s*:", re.M | re.S)),
    ("diffusers' scripts", re.compile(r"^\s*accelerate launch\b.*\.py\b", re.M)),
)


def other_program(text: str) -> str | None:
    """Whose configuration a text is, by keys that only this program has; None for all else."""
    return next((program for program, sign in _OTHERS if sign.search(text)), None)


def read(path: Path) -> Document:
    """Parse the file. Only a regular file is opened, so that a pipe cannot block; raises Unreadable."""
    text = _text(path)
    if (program := other_program(text)) is not None:
        hint = "recipes/coming-from.md has the key for each of its settings, `pivotune new` the recipes to start from"
        raise Unreadable(Problem("error", 0, "", f"this is a configuration of {program}, not a recipe; {hint}"))
    try:
        data = tomli.loads(text)
    except tomli.TOMLDecodeError as error:
        raise Unreadable(Problem("error", error.lineno, "", _syntax(error))) from error
    except RecursionError as error:
        raise Unreadable(Problem("error", 0, "", f"tables or lists are nested too deeply; {_DEPTH}")) from error
    except ValueError as error:  # Python refuses integers of thousands of digits
        raise Unreadable(Problem("error", 0, "", "a number has thousands of digits; shorten it")) from error
    if not data:
        raise Unreadable(Problem("error", 0, "", "the recipe is empty; create one with `pivotune new`"))
    refuse_deep(data)
    document = Document(path, text, data)
    _refuse_changed_paths(document)
    return document


def _refuse_changed_paths(document: Document) -> None:
    """Raises Unreadable for a path in which TOML read backslashes as escapes."""
    for key_path, value in changed_paths(document.data):
        problem = document.problem(key_path, "")
        line = document.text.split("\n")[problem.line - 1]
        hint = advice(line)
        if hint:
            raise Unreadable(document.problem(key_path, f"read as {value!r}: {hint}"))


def _text(path: Path) -> str:
    try:
        facts = path.stat()
        if stat.S_ISDIR(facts.st_mode):
            inside = sorted(entry.name for entry in path.glob("*.toml"))[:5]
            hint = f"; recipes in it: {', '.join(inside)}" if inside else ""
            raise Unreadable(Problem("error", 0, "", f"is a folder; give a .toml file{hint}"))
        if not stat.S_ISREG(facts.st_mode):
            raise Unreadable(Problem("error", 0, "", "not a regular file; give a .toml file"))
        if facts.st_size > LARGEST:
            size = f"{facts.st_size / 1e6:.1f} MB"
            raise Unreadable(Problem("error", 0, "", f"too large for a recipe: {size} (at most {LARGEST / 1e6:g} MB)"))
        with path.open("rb") as file:
            raw = file.read(LARGEST + 1)
    except OSError as error:
        raise Unreadable(Problem("error", 0, "", f"cannot be read: {error.strerror or error}")) from error
    return _decoded(raw)


def _decoded(raw: bytes) -> str:
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        kind = "UTF-16" if raw[:2] in (b"\xff\xfe", b"\xfe\xff") else f"byte 0x{raw[error.start]:02x}"
        text = f"not UTF-8 ({kind}); save the file as UTF-8"
        raise Unreadable(Problem("error", line, "", text)) from error


def _syntax(error: tomli.TOMLDecodeError) -> str:
    """The cause of a syntax error, and what to write if it is a Windows path."""
    cause = error.msg[0].lower() + error.msg[1:]
    if "overwrite" in cause or "declare" in cause or "mutate" in cause:
        cause = f"duplicate key or table ({cause})"
    return f"invalid TOML at column {error.colno}: {cause}{advice_for(error)}"


def refuse_deep(data: dict[str, Any]) -> None:
    """Raises Unreadable for too deep nesting, before any recursive code sees it."""
    level: list[Any] = [data]
    for _ in range(DEEPEST):
        level = [item for value in level for item in _children(value)]
    if level:
        text = f"tables or lists are nested more than {DEEPEST} levels deep; {_DEPTH}"
        raise Unreadable(Problem("error", 0, "", text))


def _children(value: object) -> list[Any]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []
