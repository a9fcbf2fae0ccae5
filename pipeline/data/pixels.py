"""A picture file becomes a tensor of the training resolution, or is refused by name."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy
import torch
from PIL import Image, ImageOps
from torch import Tensor

from ..errors import StageError


def open_picture(path: Path) -> Image.Image:
    """The picture as its viewer sees it: turned by its EXIF mark, transparent parts on white, as 8-bit RGB.

    Raises StageError for a file that is no picture, is cut off, or holds more than one frame.
    """
    try:
        with Image.open(path) as file:
            frames = getattr(file, "n_frames", 1)
            if frames > 1:
                raise StageError(f"{path}: an animation of {frames} frames; give one picture a file")
            upright = ImageOps.exif_transpose(file)
            if upright.mode in ("RGBA", "LA", "PA") or "transparency" in upright.info:
                see_through = upright.convert("RGBA")
                ground = Image.new("RGBA", see_through.size, "white")
                return Image.alpha_composite(ground, see_through).convert("RGB")
            if upright.mode.startswith("I"):  # 16 bits a pixel: PIL's own conversion would clip instead of scale
                high = (numpy.asarray(upright).astype(numpy.uint32) >> 8).astype(numpy.uint8)
                return Image.fromarray(high).convert("RGB")
            return upright.convert("RGB")
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError) as error:
        raise StageError(f"{path}: not a readable picture ({error})") from error


def picture_tensor(picture: Image.Image, resolution: int) -> Tensor:
    """(3, resolution, resolution) float32 in -1..1: resized (Lanczos) until it covers the square, cut at the centre."""
    square = ImageOps.fit(picture, (resolution, resolution), Image.Resampling.LANCZOS)
    values = numpy.asarray(square, dtype=numpy.float32)
    return torch.from_numpy(values / 127.5 - 1).permute(2, 0, 1).contiguous()


def crop_sizes(size: tuple[int, int], cut: tuple[int, int]) -> tuple[float, ...]:
    """SDXL's six sizes of a picture of `size` (width, height) that is cut at its centre to `cut`.

    Original height and width, top and left of the cut in the picture resized to cover it, height and width of the cut
    (Podell et al. 2023, section 2.2).
    """
    scale = max(cut[0] / size[0], cut[1] / size[1])
    left, top = (round((side * scale - to) / 2) for side, to in zip(size, cut, strict=True))
    return tuple(float(value) for value in (size[1], size[0], top, left, cut[1], cut[0]))
