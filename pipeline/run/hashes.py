"""What went into a run, by content."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

WEIGHTS = (".safetensors", ".bin", ".ckpt", ".json", ".txt", ".model")


def sha256(path: Path) -> str:
    """Hash of a file's bytes, 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def model_hashes(path: Path) -> dict[str, str]:
    """Hash of a checkpoint, or of every weight and config file of a model folder, by its path in there."""
    if path.is_file():
        return {path.name: sha256(path)}
    found = (file for file in sorted(path.rglob("*")) if file.is_file() and file.suffix in WEIGHTS)
    return {file.relative_to(path).as_posix(): sha256(file) for file in found}


def file_hashes(paths: Iterable[Path], base: Path) -> dict[str, str]:
    """Hash of each file, by its path from `base`; absolute where it lies elsewhere."""
    return {shown_path(path, base): sha256(path) for path in paths}


def shown_path(path: Path, base: Path) -> str:
    """A path as the manifest has it: from `base`, absolute where it lies elsewhere."""
    return path.relative_to(base).as_posix() if path.is_relative_to(base) else str(path)


def tensor_hash(tensor: Tensor) -> str:
    """Hash of a tensor's values as bytes: equal only for tensors that are equal bit for bit."""
    import torch

    whole = tensor.detach().cpu().contiguous()
    flat = whole.as_strided((whole.numel(),), (1,))  # one value counts as contiguous even as every eleventh of some
    return hashlib.sha256(flat.view(torch.uint8).numpy().data).hexdigest()
