"""Atomic writes, hashes of files (those of large ones are kept), and small JSON files from untrusted sources."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import stat
import tempfile
import time
from collections.abc import Iterable
from contextlib import suppress
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
    """Hash of a checkpoint, or of every weight and config file of a model folder, by its path in the folder.

    Those of large files are kept (see `kept_sha256`).
    """
    if path.is_file():
        return {path.name: kept_sha256(path)}
    found = (file for file in sorted(path.rglob("*")) if file.is_file() and file.suffix in WEIGHTS)
    return {file.relative_to(path).as_posix(): kept_sha256(file) for file in found}


def user_cache() -> Path:
    """The user's cache folder: `$PIVOTUNE_CACHE`, else `pivotune` in `$XDG_CACHE_HOME`, `%LOCALAPPDATA%` or `~/.cache`.

    RuntimeError where the user has no home.
    """
    own = os.environ.get("PIVOTUNE_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or os.environ.get("LOCALAPPDATA")
    return Path(own or (Path(base) if base else Path.home() / ".cache") / "pivotune").expanduser()


KEPT_FROM = 1 << 24  # bytes; smaller files are hashed in a few milliseconds
SETTLED = 2 * 10**9  # nanoseconds: a file written to less than this ago may change again within one tick of its clock
_KEPT, _DIGEST = "model-hashes.json", re.compile(r"[0-9a-f]{64}")


def kept_sha256(path: Path) -> str:
    """As `sha256`; that of a large file is kept in the user's cache, with the file's path, size, times and inode.

    If any of these differs, or the cache is corrupt, the file is hashed again. A cache that cannot be written is none.
    """
    real = Path(os.path.realpath(path))
    before = os.stat(real)
    if before.st_size < KEPT_FROM:
        return sha256(real)
    try:
        kept = user_cache() / _KEPT
        entries = read_json(kept)
    except (OSError, ValueError, RuntimeError):
        entries = {}
    state = _state(before)
    entry = entries.get(str(real))
    if isinstance(entry, dict) and entry.get("state") == state and _DIGEST.fullmatch(str(entry.get("sha256"))):
        return str(entry["sha256"])
    digest = sha256(real)
    if _state(os.stat(real)) == state and time.time_ns() - before.st_mtime_ns > SETTLED:
        entries = {name: one for name, one in entries.items() if os.path.exists(name)}
        with suppress(OSError, ValueError, RuntimeError):
            _keep(user_cache(), entries | {str(real): {"state": state, "sha256": digest}})
    return digest


def _state(found: os.stat_result) -> list[int]:
    """What changes with a file's content: a program may restore the time of a change, but not that of the inode."""
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino, found.st_dev]


def _keep(folder: Path, entries: dict[str, Any]) -> None:
    """Replace the file of hashes; of two processes that do so at once, the later one's entries are kept."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".", dir=folder) as own:
        write_json(Path(own) / _KEPT, entries)
        replace(Path(own) / _KEPT, folder / _KEPT)


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
