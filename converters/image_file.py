"""Pictures that A1111 keeps an embedding in: a text chunk of a PNG, or the low bits beside the picture.

Follows modules/textual_inversion/image_embedding.py of AUTOMATIC1111 1.10. Pillow is imported only here.
"""

from __future__ import annotations

import base64
import binascii
import json
import struct
import zlib
from itertools import chain
from pathlib import Path
from typing import Any

from .errors import ConvertError
from .stored import Stored
from .tensor import RawTensor

CHUNK = "sd-ti-embedding"
MAX_PIXELS = 1 << 25
MAX_JSON = 64 << 20


def read(path: Path) -> Stored:
    """The embedding in a picture. Raises ConvertError if there is none, as in every resized or re-saved picture."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ConvertError(f"{path}: a picture too large to hold an embedding")
            text = getattr(image, "text", {}).get(CHUNK)
            packed = None if text else _hidden(image.convert("RGB").tobytes(), image.width, image.height)
        if not text and not packed:
            raise ConvertError(f"{path}: a picture without an embedding in it")
        content = base64.b64decode(text) if text else _unpacked(packed or b"")
        loaded = json.loads(content)
    except ConvertError:
        raise
    except (
        UnidentifiedImageError,
        Image.DecompressionBombError,
        OSError,
        SyntaxError,
        ValueError,
        RecursionError,
    ) as error:
        raise ConvertError(f"{path}: a picture without a readable embedding in it ({str(error)[:80]})") from error
    except (zlib.error, binascii.Error, struct.error) as error:
        raise ConvertError(f"{path}: a picture without a readable embedding in it ({error})") from error
    if not isinstance(loaded, dict):
        raise ConvertError(f"{path}: a picture whose text is no embedding")
    tensors: dict[str, RawTensor] = {}
    metadata: dict[str, str] = {}
    _flatten(loaded, "", tensors, metadata, path)
    return Stored(path, tensors, metadata, "image")


def _flatten(
    value: Any, name: str, tensors: dict[str, RawTensor], metadata: dict[str, str], path: Path, depth: int = 0
) -> None:
    if isinstance(value, dict) and value.keys() == {"TORCHTENSOR"}:
        tensors[name] = _tensor(value["TORCHTENSOR"], name, path)
    elif isinstance(value, dict) and depth < 4:
        for key, child in value.items():
            _flatten(child, f"{name}.{key}" if name else key, tensors, metadata, path, depth + 1)
    elif isinstance(value, str | int | float):
        metadata[name] = str(value)


def _tensor(rows: Any, name: str, path: Path) -> RawTensor:
    """Numbers of a nested list. A1111 wrote binary32 values as text: if all of them are, they come back as such."""
    shape: list[int] = []
    while isinstance(rows, list) and rows and isinstance(rows[0], list) and len(shape) < 4:
        if {len(row) if isinstance(row, list) else -1 for row in rows} != {len(rows[0])}:
            raise ConvertError(f"{path}: the rows of {name[:40]!r} are not of one length")
        shape.append(len(rows))
        rows = list(chain.from_iterable(rows))
    if shape:
        shape.append(len(rows) // max(1, _product(shape)))
    elif isinstance(rows, list):
        shape = [len(rows)]
    numbers = rows if isinstance(rows, list) else [rows]
    if not all(type(number) in (int, float) for number in numbers):
        raise ConvertError(f"{path}: {name[:40]!r} holds something that is no number")
    try:
        narrow = struct.pack(f"<{len(numbers)}f", *numbers)
        exact = all(a == b for a, b in zip(struct.unpack(f"<{len(numbers)}f", narrow), numbers, strict=True))
    except OverflowError:
        exact = False
    if exact:
        return RawTensor("F32", tuple(shape), narrow)
    return RawTensor("F64", tuple(shape), struct.pack(f"<{len(numbers)}d", *numbers))


def _product(shape: list[int]) -> int:
    return shape[0] if len(shape) == 1 else shape[0] * _product(shape[1:])


def _unpacked(packed: bytes) -> bytes:
    engine = zlib.decompressobj()
    content = engine.decompress(packed, MAX_JSON)
    if not engine.eof:
        raise ValueError("its data ends early or is too long")
    return content


def _hidden(pixels: bytes, width: int, height: int) -> bytes | None:
    """The packed bytes beside the picture: low halves left of the first dark column, high halves right of the last."""
    pixels, width, height = _without_border(pixels, width, height)
    low = bytes(value & 0x0F for value in range(256))
    nibbles = pixels.translate(low)
    stride = 3 * width
    dark = [x for x in range(width) if not any(any(nibbles[3 * x + c :: stride]) for c in range(3))]
    if len(dark) < 2:
        return None
    left = b"".join(nibbles[y * stride : y * stride + 3 * dark[0]] for y in range(height))
    right = b"".join(nibbles[y * stride + 3 * dark[-1] + 3 : (y + 1) * stride] for y in range(height))
    if not left or len(left) != len(right):
        return None
    mask = _mask(len(left))
    return bytes((high ^ key) << 4 | (value ^ key) for value, high, key in zip(left, right, mask, strict=True))


def _without_border(pixels: bytes, width: int, height: int) -> tuple[bytes, int, int]:
    """Rows and columns off at the edges in which no pixel has all three channels above zero."""
    stride = 3 * width
    lit = [bytes(min(t) for t in zip(*(pixels[y * stride + c : (y + 1) * stride : 3] for c in range(3)), strict=True))
           for y in range(height)]  # fmt: skip
    rows = [y for y in range(height) if any(lit[y])]
    if not rows:
        return b"", 0, 0
    any_column = [any(column) for column in zip(*lit, strict=True)]
    first, last = any_column.index(True), width - any_column[::-1].index(True)
    kept = range(rows[0], rows[-1] + 1)
    return b"".join(pixels[y * stride + 3 * first : y * stride + 3 * last] for y in kept), last - first, len(kept)


def _mask(count: int) -> bytes:
    """Low halves of a linear congruential sequence that starts at 0."""
    seed, found = 0, bytearray(count)
    for at in range(count):
        seed = (1664525 * seed + 1013904223) & 0xFFFFFFFF
        found[at] = seed % 255 & 0x0F
    return bytes(found)
