"""An image file as a viewer sees it, or refused by name. Needs Pillow, not torch."""

from __future__ import annotations

import os
import struct
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from importlib import import_module
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

from ..errors import StageError
from .buckets import Shape

FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "BMP", "GIF", "TIFF", "AVIF", "HEIF")
ENDINGS = {
    "PNG": (".png",), "JPEG": (".jpg", ".jpeg", ".jfif"), "MPO": (".jpg", ".jpeg"), "WEBP": (".webp",),
    "BMP": (".bmp",), "GIF": (".gif",), "TIFF": (".tif", ".tiff"), "AVIF": (".avif",), "HEIF": (".heic", ".heif"),
}  # fmt: skip
SMALLEST = 8  # pixels a side: less shows nothing
MOST_PIXELS = 64_000_000  # decoded, an image takes up to sixteen bytes a pixel for a while
_REDUCED = ("JPEG", "MPO")  # what can be decoded at a half, a quarter or an eighth of its size
TURNED = (5, 6, 7, 8)  # EXIF marks by which width and height change places
_UNREADABLE = (
    OSError, SyntaxError, ValueError, EOFError, struct.error, IndexError, KeyError, TypeError, OverflowError,
    MemoryError, Image.DecompressionBombError,
)  # fmt: skip  # what Pillow's plugins raise for files that are not what they should be


def inspect_image(path: Path) -> tuple[Shape, str]:
    """Upright width and height, and the format by content, from the file's beginning alone.

    Raises StageError for a file that is no image, is too small to show anything, or holds several.
    """
    with _opened(path) as file:
        size = file.size[::-1] if _mark(file) in TURNED else file.size
        if min(size) < SMALLEST:
            raise StageError(f"{path}: {size[0]}x{size[1]} pixels are too few; the least is {SMALLEST}x{SMALLEST}")
        return (size[0], size[1]), file.format or ""


def refuse_truncated(path: Path, kind: str) -> None:
    """StageError for a PNG, JPEG, WebP, GIF or BMP that ends before its end. Reads its last bytes; what these do not
    show to be whole is decoded."""
    if kind in _ENDS and not _ENDS[kind](*_edges(path)):
        open_image(path)


# kind: whether a file's first and last bytes, and its size, say that nothing of it is missing
_ENDS: dict[str, Callable[[bytes, bytes, int], bool]] = {
    "PNG": lambda head, tail, size: b"IEND\xaeB`\x82" in tail,
    "JPEG": lambda head, tail, size: b"\xff\xd9" in tail,
    "MPO": lambda head, tail, size: b"\xff\xd9" in tail,
    "WEBP": lambda head, tail, size: int.from_bytes(head[4:8], "little") + 8 <= size,
    "GIF": lambda head, tail, size: tail.rstrip(b"\0").endswith(b"\x3b"),
    "BMP": lambda head, tail, size: 0 < int.from_bytes(head[2:6], "little") <= size,
}
_TAIL = 64  # bytes; some programs write a few more behind the end


def _edges(path: Path) -> tuple[bytes, bytes, int]:
    with path.open("rb") as file:
        head = file.read(8)
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - _TAIL))
        return head, file.read(), size


def _mark(file: Image.Image) -> int | None:
    """The EXIF mark of how an image is turned; of a PNG only one before the pixels: for others Pillow decodes it."""
    if file.format == "PNG" and not any("exif" in str(key).lower() for key in file.info):
        return None
    mark: int | None = file.getexif().get(0x0112)
    return mark


def open_image(path: Path) -> Image.Image:
    """The image turned by its EXIF mark, transparent parts on white, as 8-bit RGB.

    Raises StageError for a file that is no image, is cut off, or holds several.
    """
    upright = _upright(path)
    if upright.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in upright.info:
        see_through = upright.convert("RGBA")
        ground = Image.new("RGBA", see_through.size, "white")
        return Image.alpha_composite(ground, see_through).convert("RGB")
    return upright.convert("RGB")


def open_mask(path: Path, image: Shape) -> Image.Image:
    """A mask in 8-bit grey, in the size of its image: white counts. StageError when its shape is another one."""
    mask = open_image(path).convert("L")
    if abs(mask.width * image[1] - image[0] * mask.height) > 0.02 * mask.height * image[1]:
        sizes = f"{mask.width}x{mask.height}", f"{image[0]}x{image[1]}"
        raise StageError(f"{path}: the mask is {sizes[0]}, its image {sizes[1]}: they do not have the same shape")
    return mask if mask.size == image else mask.resize(image, Image.Resampling.BILINEAR)


def open_alpha(path: Path) -> Image.Image:
    """How opaque each pixel is, in 8-bit grey; white everywhere where the file does not say."""
    upright = _upright(path)
    if "A" in upright.getbands() or "a" in upright.getbands() or "transparency" in upright.info:
        return upright.convert("RGBA").getchannel("A")
    return Image.new("L", upright.size, 255)


def _upright(path: Path) -> Image.Image:
    with _opened(path) as file:
        _draft(file)
        upright = ImageOps.exif_transpose(file)
        if upright.mode == "F":
            raise ValueError("its pixels are floating-point numbers; save it with 8 or 16 bits")
        if upright.mode.startswith("I"):  # 16 bits a pixel: Pillow's own conversion would clip instead of scale
            return upright.convert("I").point(lambda value: value / 257 + 0.5).convert("L")
        upright.load()
        return upright


def _draft(file: Image.Image) -> None:
    """Let a JPEG of very many pixels be decoded at half its size or less."""
    scale = 1
    while file.width * file.height > MOST_PIXELS * scale**2:
        scale *= 2
    if scale > 1:
        file.draft(None, (file.width // scale, file.height // scale))


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """The file open in Pillow; whatever Pillow objects to becomes a StageError that names it."""
    try:
        if path.exists() and not path.is_file() and not path.is_dir():
            raise StageError(f"{path}: no regular file")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # large images and damaged EXIF: both are handled or refused below
            with Image.open(path, formats=_formats()) as file:
                if file.width * file.height > MOST_PIXELS and file.format not in _REDUCED:
                    most = f"at most {MOST_PIXELS // 1_000_000} million are decoded"
                    raise StageError(f"{path}: {file.width}x{file.height} pixels are too many; {most}, make it smaller")
                frames = getattr(file, "n_frames", 1)
                if frames > 1 and file.format != "MPO":  # telephones put a small second image into a JPEG
                    kind = "pages" if file.format == "TIFF" else "frames of an animation"
                    raise StageError(f"{path}: holds {frames} {kind}; save each as a file of its own")
                yield file
    except UnidentifiedImageError as error:
        raise StageError(f"{path}: {_unknown(path)}") from error
    except Image.DecompressionBombError as error:
        raise StageError(f"{path}: too large to be opened safely ({error}); make it smaller") from error
    except _UNREADABLE as error:
        raise StageError(f"{path}: not a readable image ({getattr(error, 'strerror', None) or error})") from error


@cache
def _formats() -> tuple[str, ...]:
    """The formats that this machine reads; HEIC where pillow-heif is installed.

    Pillow's own `init` imports some forty modules for all that it knows.
    """
    for name in ("Png", "Jpeg", "Mpo", "WebP", "Bmp", "Gif", "Tiff", "Avif"):
        with suppress(ImportError):  # an older Pillow has no AVIF
            import_module(f"PIL.{name}ImagePlugin")
    with suppress(ImportError):
        from pillow_heif import register_heif_opener

        register_heif_opener()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _unknown(path: Path) -> str:
    with path.open("rb") as file:
        head = file.read(32)
    if not head:
        return "the file is empty"
    if head[4:8] == b"ftyp" and head[8:12] in (b"heic", b"heix", b"hevc", b"mif1", b"msf1", b"heim", b"heis"):
        return "a HEIC image; pip install pillow-heif, or save it as PNG or JPEG"
    if head[4:8] == b"ftyp" and head[8:12] in (b"avif", b"avis"):
        return "an AVIF image, which this Pillow cannot read; pip install -U pillow, or save it as PNG or JPEG"
    return "the file is not an image"
