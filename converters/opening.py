"""Opening a file by what it holds, whatever its name says."""

from __future__ import annotations

import os
from pathlib import Path

from . import safetensors_file
from .errors import ConvertError
from .file_range import opened, read_exactly
from .folders import nothing_in
from .stored import Stored

FIRST = 1 << 16  # bytes that are read to begin with: all of an embedding
LATEST_PICKLE = b"\x05"  # protocol
IMAGES = (
    b"\x89PNG",
    b"RIFF",
    b"\xff\x0a",
    b"\x00\x00\x00\x0cJXL",
    b"\x00\x00\x00\x1cftypavif",
    b"\x00\x00\x00 ftypavif",
)


def open_file(path: Path | str, *, cached: int = safetensors_file.SMALL) -> Stored:
    """Tensors and texts of a safetensors file, a torch pickle (old or new) or an A1111 image, made flat.

    Up to `cached` bytes of tensors are kept in memory; larger data stays in the file. Raises ConvertError that
    names the file and what is wrong with it; code in a pickle is never run.
    """
    path = path if isinstance(path, Path) else Path(path)
    try:
        return _open(path, cached)
    except ConvertError as error:
        if os.path.isdir(path):
            raise nothing_in(path) from error
        raise


def _open(path: Path, cached: int) -> Stored:
    with opened(path) as (descriptor, origin):
        if origin.size == 0:
            raise ConvertError(f"{path}: the file is empty")
        start = read_exactly(descriptor, 0, min(FIRST, origin.size), path)
        pickled = start[:2] == b"PK" or (start[:1] == b"\x80" and start[1:2] <= LATEST_PICKLE)
        if start[8:9] == b"{" and (not pickled or int.from_bytes(start[:8], "little") <= origin.size - 8):
            return Stored(path, *safetensors_file.read_opened(descriptor, origin, start, cached=cached))
    if start.startswith(IMAGES):
        from . import image_file

        return image_file.read(path)
    if pickled:
        from . import torch_file, torch_values

        return torch_values.flatten(torch_file.read(path), Stored(path, {}, {}, "pickle"))
    raise ConvertError(f"{path}: {_wrong_file(start)}")


def _wrong_file(start: bytes) -> str:
    """What a file of another kind is, and what to do."""
    text = start[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        return "this is a web page, not an embedding; download the file itself (the page may ask you to log in)"
    if text.startswith(b"version https://git-lfs"):
        return "this is a Git LFS pointer, not the file; get it with `git lfs pull`, or download it from its page"
    if text.startswith(b"{"):
        return "this is JSON text, not an embedding; a server may have sent an error message instead of the file"
    if start[:2] == b"\x1f\x8b" or start[:4] in (b"Rar!", b"7z\xbc\xaf"):
        return "this is a compressed archive; unpack it first"
    if not any(start):
        return "this file has only zero bytes: the download is incomplete; download it again"
    return f"not a safetensors, torch or image file (it starts with {start[:8]!r})"
