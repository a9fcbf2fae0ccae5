"""Reads image files as a viewer shows them. Needs Pillow, not torch."""

from __future__ import annotations

import io
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache, lru_cache
from importlib import import_module
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image, ImageOps, UnidentifiedImageError

from ..errors import StageError
from .buckets import Shape

if TYPE_CHECKING:
    from PIL.ImageCms import ImageCmsTransform

FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "BMP", "GIF", "TIFF", "AVIF", "HEIF", "JXL")
ENDINGS = {
    "PNG": (".png",), "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"), "MPO": (".jpg", ".jpeg", ".jpe"), "WEBP": (".webp",),
    "BMP": (".bmp",), "GIF": (".gif",), "TIFF": (".tif", ".tiff"), "AVIF": (".avif",), "HEIF": (".heic", ".heif"),
    "JXL": (".jxl",),
}  # fmt: skip
SMALLEST = 8  # pixels per side
MOST_PIXELS = 64_000_000  # decoding needs up to sixteen bytes per pixel
REDUCED = ("JPEG", "MPO")  # can be decoded at a half, a quarter or an eighth of their size
ROTATED = (5, 6, 7, 8)  # EXIF orientations that swap width and height
_UNREADABLE = (
    OSError, SyntaxError, ValueError, EOFError, struct.error, IndexError, KeyError, TypeError, OverflowError,
    MemoryError, RuntimeError, Image.DecompressionBombError,
)  # fmt: skip  # what Pillow's plugins raise for corrupt files


def inspect_image(path: Path) -> tuple[Shape, str]:
    """Upright width and height, and the format by content, from the start of the file only.

    Raises StageError for a file that is not an image, is too small, or contains several images.
    """
    with _open(path) as file:
        size = file.size[::-1] if _orientation(file) in ROTATED else file.size
        if min(size) < SMALLEST:
            raise StageError(f"{path}: {size[0]}x{size[1]} pixels are too few; the minimum is {SMALLEST}x{SMALLEST}")
        return (size[0], size[1]), file.format or ""


def _orientation(file: Image.Image) -> int | None:
    """The EXIF orientation; of a PNG only if it is before the pixels, as Pillow would decode it to find others."""
    if file.format == "PNG" and not any("exif" in str(key).lower() for key in file.info):
        return None
    orientation: int | None = file.getexif().get(0x0112)
    return orientation


def open_image(path: Path) -> Image.Image:
    """The image as 8-bit sRGB, rotated by its EXIF orientation, with transparent parts on white.

    Raises StageError for a file that is not an image, is truncated, or contains several images.
    """
    upright = _upright(path)
    profile = upright.info.get("icc_profile")
    if upright.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in upright.info:
        whole = upright.convert("RGBA")
        transparent = in_srgb(whole.convert("RGB"), profile)
        transparent.putalpha(whole.getchannel("A"))
        background = Image.new("RGBA", transparent.size, "white")
        return Image.alpha_composite(background, transparent).convert("RGB")
    return in_srgb(upright, profile)


def open_mask(path: Path, image: Shape) -> Image.Image:
    """A mask as 8-bit grey in the size of its image: white counts. StageError when its aspect ratio differs."""
    mask = open_image(path).convert("L")
    if abs(mask.width * image[1] - image[0] * mask.height) > 0.02 * mask.height * image[1]:
        sizes = f"{mask.width}x{mask.height}", f"{image[0]}x{image[1]}"
        raise StageError(f"{path}: the mask is {sizes[0]}, its image {sizes[1]}: their aspect ratios differ")
    return mask if mask.size == image else mask.resize(image, Image.Resampling.BILINEAR)


def open_alpha(path: Path) -> Image.Image:
    """The alpha channel as 8-bit grey; white if the image has none."""
    upright = _upright(path)
    if "A" in upright.getbands() or "a" in upright.getbands() or "transparency" in upright.info:
        return upright.convert("RGBA").getchannel("A")
    return Image.new("L", upright.size, 255)


def _upright(path: Path) -> Image.Image:
    with _open(path) as file:
        _draft(file)
        profile = file.info.get("icc_profile")
        upright = ImageOps.exif_transpose(file)
        if upright.mode == "F":
            raise ValueError("its pixels are floating-point numbers; save it with 8 or 16 bits")
        if upright.mode.startswith("I"):  # 16 bits per pixel: Pillow's conversion would clip instead of scale
            upright = upright.convert("I").point(lambda value: value / 257 + 0.5).convert("L")
        upright.load()
        upright.info["icc_profile"] = profile
        return upright


def _draft(file: Image.Image) -> None:
    """Decode a JPEG of very many pixels at half its size or less."""
    scale = 1
    while file.width * file.height > MOST_PIXELS * scale**2:
        scale *= 2
    if scale > 1:
        file.draft(None, (file.width // scale, file.height // scale))


@contextmanager
def _open(path: Path) -> Iterator[Image.Image]:
    """Open a file in Pillow; its errors become StageErrors that name the file."""
    try:
        if path.exists() and not path.is_file() and not path.is_dir():
            raise StageError(f"{path}: not a regular file")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # large images and corrupt EXIF: both are handled below
            with Image.open(path, formats=_formats()) as file:
                if file.width * file.height > MOST_PIXELS and file.format not in REDUCED:
                    most = f"the limit is {MOST_PIXELS // 1_000_000} million"
                    raise StageError(f"{path}: {file.width}x{file.height} pixels are too many; {most}; make it smaller")
                frames = getattr(file, "n_frames", 1)
                if frames > 1 and file.format != "MPO":  # phones store a small second image in a JPEG
                    kind = "pages" if file.format == "TIFF" else "frames of an animation"
                    raise StageError(f"{path}: contains {frames} {kind}; save each as a separate file")
                yield file
    except UnidentifiedImageError as error:
        raise StageError(f"{path}: {_unknown(path)}") from error
    except Image.DecompressionBombError as error:
        raise StageError(f"{path}: too large to be opened safely ({error}); make it smaller") from error
    except _UNREADABLE as error:
        raise StageError(f"{path}: not a readable image ({_reason(error)})") from error


def _reason(error: BaseException) -> str:
    """The first line of an error of Pillow or a plugin."""
    text = str(getattr(error, "strerror", None) or error)
    return text.partition("\n")[0]


@cache
def _formats() -> tuple[str, ...]:
    """The supported formats; HEIC if pillow-heif is installed, JPEG XL if pillow-jxl-plugin is.

    Pillow's own `init` imports some forty modules.
    """
    for name in ("Png", "Jpeg", "Mpo", "WebP", "Bmp", "Gif", "Tiff", "Avif"):
        with suppress(ImportError):  # an older Pillow has no AVIF
            import_module(f"PIL.{name}ImagePlugin")
    with suppress(ImportError):
        from pillow_heif import register_heif_opener

        register_heif_opener()
    with suppress(ImportError):
        import pillow_jxl  # noqa: F401  # registers itself
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
    if head.startswith((b"\xff\x0a", b"\0\0\0\x0cJXL \r\n\x87\n")):
        return "a JPEG XL image; pip install pillow-jxl-plugin, or save it as PNG or JPEG"
    return "the file is not an image"


_PROFILED = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}  # Pillow's mode by a profile's colour space
_SAME = 2  # of 255: profiles whose colours differ less from sRGB are sRGB
_LEVELS = (0, 32, 96, 160, 255)


def in_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """An image without alpha as 8-bit sRGB. A profile that is corrupt, or of other channels, is ignored, as viewers do.

    The intent is relative colorimetric with black point compensation: colours that sRGB has stay as they are.
    """
    found = _transform(profile) if profile else None
    if found is None or (found[0] == "CMYK") != (image.mode == "CMYK"):
        return image.convert("RGB")
    mode, transform = found
    return transform.apply(image.convert(mode))


@lru_cache(maxsize=32)  # images of one camera have the same profile
def _transform(profile: bytes) -> tuple[str, ImageCmsTransform] | None:
    """The mode of images with this profile and the conversion to sRGB; None for sRGB itself and unusable profiles."""
    try:
        from PIL import ImageCms
    except ImportError:  # a Pillow built without it
        return None
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        mode = _PROFILED[source.profile.xcolor_space.strip()]
        transform = ImageCms.buildTransform(
            source, ImageCms.createProfile("sRGB"), mode, "RGB",
            ImageCms.Intent.RELATIVE_COLORIMETRIC, ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )  # fmt: skip
    except (ImageCms.PyCMSError, OSError, KeyError, ValueError, TypeError):
        return None
    return None if mode == "RGB" and _is_srgb(transform) else (mode, transform)


def _is_srgb(transform: ImageCmsTransform) -> bool:
    """Whether a conversion leaves colours as they are: sRGB's own profiles differ in the last bits."""
    colours = list(product(_LEVELS, repeat=3))
    image = Image.new("RGB", (len(colours), 1))
    image.putdata(colours)
    after = transform.apply(image).tobytes()
    return all(abs(one - other) <= _SAME for one, other in zip(image.tobytes(), after, strict=True))
