"""Small files of model folders, which may come from strangers: regular files of a bounded size only."""

from __future__ import annotations

import errno
import json
import os
import stat
from pathlib import Path
from typing import Any

LARGEST = 1 << 23  # bytes of a config; real ones have a few thousand
DEEPEST = 32  # objects and lists inside each other
_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)


def read_regular(path: Path, largest: int = LARGEST) -> bytes:
    """A regular file's bytes. OSError for anything else (FIFO, device, folder), ValueError when it is larger."""
    _refuse_special(path, os.stat(path))  # opening some devices does something
    with open(os.open(path, _FLAGS), "rb") as file:
        _refuse_special(path, os.fstat(file.fileno()))
        content = file.read(largest + 1)
    if len(content) > largest:
        raise ValueError(f"{path}: it is larger than {largest:,} bytes")
    return content


def _refuse_special(path: Path, found: os.stat_result) -> None:
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(found.st_mode):
        raise OSError(0, "it is no regular file", str(path))


def read_json(path: Path) -> dict[str, Any]:
    """The object in a file. OSError when it cannot be read, ValueError when it holds none or is too deep."""
    content = read_regular(path)
    try:
        value = json.loads(content.decode("utf-8"))
    except RecursionError:
        raise ValueError(f"{path}: it is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"{path}: not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds no JSON object")
    if _deeper(value, DEEPEST):
        raise ValueError(f"{path}: it is nested too deeply")
    return value


def _deeper(value: object, left: int) -> bool:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return left < 0 or any(_deeper(one, left - 1) for one in inner)
