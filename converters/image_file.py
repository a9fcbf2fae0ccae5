"""Images that A1111 keeps an embedding in: a text chunk of a PNG, or the low bits beside the image.

Follows modules/textual_inversion/image_embedding.py of AUTOMATIC1111 1.10. Pillow is imported only here.
"""

from __future__ import annotations

import base64
import json
import struct
import zlib
from functools import reduce
from io import BytesIO
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import ConvertError, PlainImage
from .file_range import opened, read_exactly
from .stored import Stored, plain_text
from .tensor import RawTensor

if TYPE_CHECKING:
    from PIL.Image import Image

CHUNK = "sd-ti-embedding"
FORMATS = ("PNG", "WEBP", "AVIF", "JXL")
MAX_FILE = 1 << 26
MAX_PIXELS = 1 << 23
MAX_HIDDEN = 1 << 22  # packed bytes beside an image
MAX_JSON = 32 << 20
MAX_VALUES = 1 << 20  # numbers in it: 512 vectors of SDXL
# Exceptions that Pillow raises for corrupt images, and those of json and base64.
DAMAGE = (
    OSError,
    EOFError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    AttributeError,
    RecursionError,
    struct.error,
    zlib.error,
)


def read(path: Path) -> Stored:
    """The embedding in an image. Raises ConvertError if there is none, as in every resized or re-saved image."""
    try:
        content = _content(path)
        if content.count(b",") > MAX_VALUES:
            raise ValueError("more numbers than an embedding has")
        loaded = json.loads(content)
    except DAMAGE as error:
        raise PlainImage(f"{path}: an image without a readable embedding ({str(error)[:80]})") from error
    if not isinstance(loaded, dict):
        raise ConvertError(f"{path}: an image whose embedded text is not an embedding")
    tensors: dict[str, RawTensor] = {}
    metadata: dict[str, str] = {}
    _flatten(loaded, "", tensors, metadata, path)
    return Stored(path, tensors, metadata, "image")


def _content(path: Path) -> bytes:
    from PIL import Image as pillow
    from PIL import UnidentifiedImageError

    with opened(path) as (descriptor, origin):
        if origin.size > MAX_FILE:
            raise PlainImage(f"{path}: an image too large to hold an embedding")
        # From a file, Pillow would read (and allocate) as many bytes as a corrupt chunk claims to have.
        content = BytesIO(read_exactly(descriptor, 0, origin.size, path))
    pillow.init()
    try:
        with pillow.open(content, formats=[name for name in FORMATS if name in pillow.OPEN]) as image:
            if image.width * image.height > MAX_PIXELS:
                raise PlainImage(f"{path}: an image too large to hold an embedding")
            text = getattr(image, "text", {}).get(CHUNK)
            if text:
                return base64.b64decode(text)
            packed = _hidden(image.convert("RGB"))
    except UnidentifiedImageError:
        raise PlainImage(f"{path}: a truncated or corrupt image") from None
    except pillow.DecompressionBombError:
        raise PlainImage(f"{path}: an image too large to hold an embedding") from None
    if not packed:
        raise PlainImage(f"{path}: an image without an embedding")
    return _unpacked(packed)


def _flatten(
    value: Any, name: str, tensors: dict[str, RawTensor], metadata: dict[str, str], path: Path, depth: int = 0
) -> None:
    if isinstance(value, dict) and value.keys() == {"TORCHTENSOR"}:
        tensors[name] = _tensor(value["TORCHTENSOR"], name, path)
    elif isinstance(value, dict) and depth < 4:
        for key, child in value.items():
            _flatten(child, f"{name}.{key}" if name else key, tensors, metadata, path, depth + 1)
    elif isinstance(value, str | int | float):
        metadata[name] = plain_text(value)


def _tensor(rows: Any, name: str, path: Path) -> RawTensor:
    """Numbers of a nested list. A1111 writes float32 values as text: values that all fit float32 become F32 again."""
    shape: list[int] = []
    while isinstance(rows, list) and rows and isinstance(rows[0], list) and len(shape) < 4:
        if {len(row) if isinstance(row, list) else -1 for row in rows} != {len(rows[0])}:
            raise ConvertError(f"{path}: the rows of {name[:40]!r} differ in length")
        shape.append(len(rows))
        rows = list(chain.from_iterable(rows))
    if shape:
        shape.append(len(rows) // max(1, _product(shape)))
    elif isinstance(rows, list):
        shape = [len(rows)]
    numbers = rows if isinstance(rows, list) else [rows]
    if not all(type(number) in (int, float) for number in numbers):
        raise ConvertError(f"{path}: {name[:40]!r} holds a value that is not a number")
    try:
        narrow = struct.pack(f"<{len(numbers)}f", *numbers)
        exact = all(a == b for a, b in zip(struct.unpack(f"<{len(numbers)}f", narrow), numbers, strict=True))
    except (OverflowError, struct.error):
        exact = False
    if exact:
        return RawTensor("F32", tuple(shape), narrow)
    try:
        return RawTensor("F64", tuple(shape), struct.pack(f"<{len(numbers)}d", *numbers))
    except (OverflowError, struct.error):
        raise ConvertError(f"{path}: {name[:40]!r} holds a number too large for any tensor") from None


def _product(shape: list[int]) -> int:
    return shape[0] if len(shape) == 1 else shape[0] * _product(shape[1:])


def _unpacked(packed: bytes) -> bytes:
    engine = zlib.decompressobj()
    content = engine.decompress(packed, MAX_JSON)
    if not engine.eof:
        raise ValueError("its data is truncated or too long")
    return content


def _hidden(image: Image) -> bytes | None:
    """The packed bytes beside the image: low halves left of the first dark column, high halves right of the last.

    Rows and columns at the edges in which no pixel has all three channels above zero are cropped first.
    """
    from PIL import ImageChops

    box = reduce(ImageChops.darker, image.split()).getbbox()
    if box is None:
        return None
    halves = image.crop(box).point([value & 0x0F for value in range(256)] * 3)
    lit, _ = reduce(ImageChops.lighter, halves.split()).getprojection()
    dark = [x for x, light in enumerate(lit) if not light]
    if len(dark) < 2:
        return None
    left = halves.crop((0, 0, dark[0], halves.height)).tobytes()
    right = halves.crop((dark[-1] + 1, 0, halves.width, halves.height)).tobytes()
    if not 2 <= len(left) == len(right) <= MAX_HIDDEN or not _packed(_unmasked(left[:2], right[:2])):
        return None
    return _unmasked(left, right)


def _packed(start: bytes) -> bool:
    """Whether zlib would write these two bytes first; an ordinary image with dark columns has others."""
    return start[0] & 0x0F == 8 and int.from_bytes(start, "big") % 31 == 0


def _unmasked(left: bytes, right: bytes) -> bytes:
    mask = _mask(len(left))
    return bytes((high ^ key) << 4 | (value ^ key) for value, high, key in zip(left, right, mask, strict=True))


def _mask(count: int) -> bytes:
    """Low halves of a linear congruential sequence that starts at 0."""
    seed, found = 0, bytearray(count)
    for at in range(count):
        seed = (1664525 * seed + 1013904223) & 0xFFFFFFFF
        found[at] = seed % 255 & 0x0F
    return bytes(found)
