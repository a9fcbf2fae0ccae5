"""Windows paths in double quotes, in which TOML reads a backslash as the begin of an escape (`\\n` is a line break)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import tomli

from .problem import KeyPath

PATHS = frozenset(("images", "captions", "masks", "base", "config", "vae", "cache_latents", "table", "folders"))
_QUOTED = re.compile(r'"([^"\n]*\\[^"\n]*)"')  # also "C:\data\", whose last quote TOML does not see
_PATH = re.compile(r"[A-Za-z]:\\|\\\\|[^\s\\]+(?:\\[^\s\\]+)+$")
_DRIVE = re.compile(r"[A-Za-z]:[^/\\]")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


def advice(line: str) -> str:
    """What to write instead of a line with a backslash in double quotes; empty for a line without one."""
    if '"""' in line or not _QUOTED.search(line):
        return ""
    paths = any(_PATH.match(text) for text in _QUOTED.findall(line))
    slashes = f", or {_QUOTED.sub(_with_slashes, line).strip()}" if paths else ""
    if any("'" in text for text in _QUOTED.findall(line)):  # single quotes cannot contain them
        return f"in double quotes a backslash begins an escape; write {_QUOTED.sub(_doubled, line).strip()}{slashes}"
    return f"in double quotes a backslash begins an escape; write {_QUOTED.sub(_single, line).strip()}{slashes}"


def advice_for(error: tomli.TOMLDecodeError) -> str:
    """The advice on the line of a syntax error, after a colon; empty if no backslash caused it."""
    found = advice(error.doc.split("\n")[error.lineno - 1])
    return f": {found}" if found else ""


def changed_paths(data: dict[str, Any]) -> Iterator[tuple[KeyPath, str]]:
    """Paths with control characters, or a drive without a slash after it: their backslashes were read as escapes."""
    level: list[tuple[KeyPath, Any]] = [((), data)]
    while level:
        path, value = level.pop()
        if isinstance(value, dict):
            level += [((*path, key), item) for key, item in value.items()]
        elif isinstance(value, list):
            level += [((*path, index), item) for index, item in enumerate(value)]
        elif isinstance(value, str) and path[-1] in PATHS and (_CONTROL.search(value) or _DRIVE.match(value)):
            yield path, value


def _unescaped(text: str) -> str:
    """A path as it was meant: with single backslashes, also where some are doubled."""
    start = "\\\\" if text.startswith("\\\\") else ""  # of a server
    return start + text.removeprefix(start).replace("\\\\", "\\")


def _single(match: re.Match[str]) -> str:
    return f"'{_unescaped(match[1])}'"


def _doubled(match: re.Match[str]) -> str:
    escaped = _unescaped(match[1]).replace("\\", "\\\\")
    return f'"{escaped}"'


def _with_slashes(match: re.Match[str]) -> str:
    slashes = _unescaped(match[1]).replace("\\", "/")
    return f'"{slashes}"'
