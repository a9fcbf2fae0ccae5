"""Safe file names for embeddings' names: nothing that a system, a shell or a program would misread."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

from .errors import ConvertError

# What Windows or a path separator forbids, and what programs read as prompt syntax around an embedding.
_UNSAFE = frozenset('<>:"/\\|?*')
_GONE = "\x00"  # marks a character that becomes `_`, to distinguish it from the name's own `_` at the ends
_RESERVED = {
    "CON",
    "PRN",
    "AUX",
    "NUL",
    "CONIN$",
    "CONOUT$",
    *(f"{port}{n}" for port in ("COM", "LPT") for n in "0123456789¹²³"),
}
MAX_BYTES = 120  # of a stem in UTF-8: leaves room for a suffix, a number and an extension on every file system


def safe_stem(name: str, allowed: str | None = None) -> str:
    """A file name without extension, close to `name`: `<cat>` gives `cat`.

    `allowed` is a regular expression of the characters a program takes; every other becomes `_`. Control
    characters, path separators, leading and trailing dots and spaces, reserved names and over-long names are
    handled; two names may give the same stem (see `distinct_stems`). Raises ConvertError if nothing is left.
    """
    marked = name
    if not (name.isascii() and name.isprintable() and _UNSAFE.isdisjoint(name)):
        marked = "".join(_GONE if _unsafe(char) else char for char in unicodedata.normalize("NFC", name))
    if allowed is not None:
        marked = re.sub(f"(?!{allowed}).", _GONE, marked, flags=re.DOTALL)
    stem = _cut(marked.lstrip(f"{_GONE} .-")).replace(_GONE, "_")
    if not stem.strip("_-. "):
        raise ConvertError(f"no file can be named after the embedding {name[:40]!r}; give it a name with letters")
    base, dot, rest = stem.partition(".")
    return f"{base}_{dot}{rest}" if is_reserved(stem) else stem


def is_reserved(name: str) -> bool:
    """Whether the name is a device on Windows: `con`, `NUL.txt`."""
    return name.partition(".")[0].strip().upper() in _RESERVED


def distinct_stems(
    names: Iterable[str],
    allowed: str | None = None,
    reserved: Iterable[str] = (),
    suffixes: Iterable[str] = ("",),
) -> dict[str, str]:
    """A stem for each name, different even if case is ignored: the second `cat` becomes `cat_2`.

    `reserved` are names that a program reads as something else (`AND`): they get a `_`. `suffixes` distinguish the
    files of one embedding; they must not collide with another embedding's file either. Raises ConvertError
    if a name occurs twice.
    """
    stems: dict[str, str] = {}
    used: set[str] = set()
    suffixes, reserved = tuple(suffixes), tuple(reserved)
    for name in names:
        if name in stems:
            raise ConvertError(f"two embeddings are called {name[:40]!r}; rename one of them")
        base = safe_stem(name, allowed)
        stem = base = f"{base}_" if base in reserved else base
        number = 2
        while not used.isdisjoint((stem + suffix).casefold() for suffix in suffixes):
            stem = f"{base}_{number}"
            number += 1
        used.update((stem + suffix).casefold() for suffix in suffixes)
        stems[name] = stem
    return stems


def _unsafe(char: str) -> bool:
    return char in _UNSAFE or unicodedata.category(char) in ("Cc", "Cf", "Cs", "Co", "Zl", "Zp")


def _cut(stem: str) -> str:
    return stem.encode("utf-8")[:MAX_BYTES].decode("utf-8", "ignore").rstrip(f"{_GONE} .")
