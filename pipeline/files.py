"""Atomic writes, hashes of files, and small JSON files from untrusted sources."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..converters.disk import replace

if TYPE_CHECKING:
    from torch import Tensor


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON atomically."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    # a path that is not UTF-8 has lone surrogates: escaped, they are JSON
    write_atomically(path, text.encode("utf-8", "backslashreplace") + b"\n")


def write_atomically(path: Path, data: bytes) -> None:
    """Replace a file in one step, through a temporary file beside it; one left by a killed process is removed."""
    temporary = path.with_name(f".{path.name}.part")
    temporary.unlink(missing_ok=True)
    with temporary.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    replace(temporary, path)


# Folders that systems and file servers add: previews, deleted files, copies of a Mac's metadata.
SYSTEM_FOLDERS = frozenset(("@eadir", "@recycle", "#recycle", "$recycle.bin", "__macosx", "lost+found", "thumbnails"))


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is not the user's data: it starts with a dot, or a system added it."""
    return name.startswith(".") or name.lower() in SYSTEM_FOLDERS


WEIGHTS = (".safetensors", ".bin", ".ckpt", ".json", ".txt", ".model")


def sha256(path: Path) -> str:
    """Hash of a file's bytes, 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def model_hashes(path: Path) -> dict[str, str]:
    """Hash of a checkpoint, or of every weight and config file of a model folder, by its path in the folder."""
    if path.is_file():
        return {path.name: sha256(path)}
    found = (file for file in sorted(path.rglob("*")) if file.is_file() and file.suffix in WEIGHTS)
    return {file.relative_to(path).as_posix(): sha256(file) for file in found}


def file_hashes(paths: Iterable[Path], base: Path) -> dict[str, str]:
    """Hash of each file, by its path relative to `base`, or its absolute path if it is elsewhere."""
    return {shown_path(path, base): sha256(path) for path in paths}


def shown_path(path: Path, base: Path) -> str:
    """A path as written to the manifest: relative to `base`, or absolute if it is elsewhere."""
    return path.relative_to(base).as_posix() if path.is_relative_to(base) else str(path)


def tensor_hash(tensor: Tensor) -> str:
    """Hash of a tensor's bytes: equal only for bit-identical tensors."""
    import torch

    whole = tensor.detach().cpu().contiguous()
    flat = whole.as_strided((whole.numel(),), (1,))  # a one-element view with any stride counts as contiguous
    return hashlib.sha256(flat.view(torch.uint8).numpy().data).hexdigest()


LARGEST = 1 << 23  # bytes of a config file; real ones have a few thousand
DEEPEST = 32  # levels of nesting
_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)


def read_regular(path: Path, largest: int = LARGEST) -> bytes:
    """The bytes of a regular file. OSError for anything else (FIFO, device, folder), ValueError if it is larger."""
    _refuse_special(path, os.stat(path))  # opening some devices has side effects
    with open(os.open(path, _FLAGS), "rb") as file:
        _refuse_special(path, os.fstat(file.fileno()))
        content = file.read(largest + 1)
    if len(content) > largest:
        raise ValueError(f"{path}: larger than {largest:,} bytes")
    return content


def _refuse_special(path: Path, found: os.stat_result) -> None:
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(found.st_mode):
        raise OSError(0, "not a regular file", str(path))


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file. OSError if it cannot be read, ValueError for other content or too deep nesting."""
    content = read_regular(path)
    try:
        value = json.loads(content.decode("utf-8"))
    except RecursionError:
        raise ValueError(f"{path}: nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"{path}: not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path}: not a JSON object")
    if _is_deeper(value, DEEPEST):
        raise ValueError(f"{path}: nested too deeply")
    return value


def _is_deeper(value: object, left: int) -> bool:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return left < 0 or any(_is_deeper(one, left - 1) for one in inner)
