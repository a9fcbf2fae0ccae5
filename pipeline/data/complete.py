"""Finds image files that are truncated: by their last bytes, and of JPEG also by decoding. Needs Pillow, not torch."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Callable
from functools import reduce
from pathlib import Path

from PIL import Image, ImageChops

from ..errors import StageError
from .images import MOST_PIXELS, REDUCED, inspect_image, open_image

_MARKER = re.compile(b"\xff+([^\x00\xff\xd0-\xd7])", re.DOTALL)  # none of these is in the data of a scan
_END, _SCAN, _PROGRESSIVE = 0xD9, 0xDA, 0xC2
_ALONE = (0x01, 0xD8)  # markers without a segment
_MORE = bytes((37 * number * number + 11 * number + 3) % 251 for number in range(1024))
SCALE = 8  # baseline images are decoded at this part of their size
_SPARE = 512  # pixels: two blocks of the largest kind, which some programs end without padding


def refuse_truncated(path: Path, kind: str) -> None:
    """StageError for a truncated PNG, JPEG, WebP, GIF or BMP. Reads its last bytes; decodes it only if in doubt."""
    if kind in _ENDS and not _ENDS[kind](*_edges(path)):
        open_image(path)


# Format: whether a file is complete, by its first and last bytes and its size.
_ENDS: dict[str, Callable[[bytes, bytes, int], bool]] = {
    "PNG": lambda head, tail, size: b"IEND\xaeB`\x82" in tail,
    "JPEG": lambda head, tail, size: b"\xff\xd9" in tail,
    "MPO": lambda head, tail, size: b"\xff\xd9" in tail,
    "WEBP": lambda head, tail, size: int.from_bytes(head[4:8], "little") + 8 <= size,
    "GIF": lambda head, tail, size: tail.rstrip(b"\0").endswith(b"\x3b"),
    "BMP": lambda head, tail, size: 0 < int.from_bytes(head[2:6], "little") <= size,
}
_TAIL = 64  # bytes; some programs append a few after the end


def _edges(path: Path) -> tuple[bytes, bytes, int]:
    with path.open("rb") as file:
        head = file.read(8)
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - _TAIL))
        return head, file.read(), size


def require_complete(path: Path) -> None:
    """StageError for a JPEG whose data end early although it has an end marker: decoders show the rest in one colour.

    Decodes the image, which must be readable, twice.
    """
    size, kind = inspect_image(path)
    share = missing_share(path.read_bytes()) if kind in REDUCED and size[0] * size[1] <= MOST_PIXELS else 0.0
    if share:
        raise StageError(f"{path}: the JPEG data end early: {share:.0%} of the image is missing; replace the file")


def missing_share(data: bytes) -> float:
    """The share of a JPEG's rows that are not determined by its data: 0 for a complete image.

    The image is decoded as it is, and with more data before its end marker: a decoder of a complete image does not
    read them. Raises as Pillow does for data that it cannot decode.
    """
    end, progressive = _find_end(data)
    if end is None:
        return 0.0  # without an end marker decoding it is an error
    scale = 1 if progressive else SCALE  # a late part of a progressive image changes only its details
    images = [_decode(data, scale), _decode(data[:end] + _MORE + data[end : end + 2], scale)]
    difference = reduce(ImageChops.lighter, ImageChops.difference(*images).split())
    box, changed = difference.getbbox(), sum(difference.histogram()[1:]) * scale**2
    return 0.0 if box is None or changed <= _SPARE else 1 - box[1] / difference.height


def _find_end(data: bytes) -> tuple[int | None, bool]:
    """Where the end marker of the first image is, and whether it is progressive. Thumbnails are inside segments."""
    at, progressive = 0, False
    while (match := _MARKER.search(data, at)) is not None:
        code, at = match[1][0], match.end()
        if code == _END:
            return match.start(), progressive
        if code not in _ALONE:
            progressive |= code == _PROGRESSIVE
            at += int.from_bytes(data[at : at + 2], "big")
    return None, progressive


def _decode(data: bytes, scale: int) -> Image.Image:
    with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
        image.draft(None, (max(1, image.width // scale), max(1, image.height // scale)))
        image.load()
        return image
