"""JPEG files whose data end early, with an end marker."""

from __future__ import annotations

import io

import numpy
import pytest
import torch
from data_of import dataset_of, recipe_of
from PIL import Image

from pivotune.pipeline.checks.preflight import Preflight, unreadable_images
from pivotune.pipeline.data.complete import missing_share, require_complete
from pivotune.pipeline.data.images import open_image
from pivotune.pipeline.errors import StageError


def jpeg(kind: str, **options) -> bytes:
    """A JPEG of 256x256 pixels: noise, one colour, or a gradient over a flat lower half."""
    values = numpy.full((256, 256, 3), 90, numpy.uint8)
    if kind == "noise":
        values = numpy.random.default_rng(0).integers(0, 255, (256, 256, 3), dtype=numpy.uint8)
    elif kind == "flat below":
        values[:128] = numpy.linspace(0, 255, 256, dtype=numpy.uint8)[None, :, None]
    file = io.BytesIO()
    Image.fromarray(values).convert(options.pop("mode", "RGB")).save(file, "JPEG", **options)
    return file.getvalue()


def cut(data: bytes, share: float) -> bytes:
    """The JPEG with this share of the data of its last scan, and an end marker."""
    start = data.rindex(b"\xff\xda")
    return data[: start + int((len(data) - start) * share)].rstrip(b"\xff") + b"\xff\xd9"


OPTIONS = [
    {}, {"quality": 100, "subsampling": 0}, {"progressive": True}, {"mode": "L"}, {"mode": "CMYK"}, {"quality": 20},
    {"restart_marker_blocks": 7}, {"optimize": True},
]  # fmt: skip


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("kind", ["noise", "flat", "flat below"])
def test_complete_images_lack_nothing(kind, options):
    data = jpeg(kind, **options)
    assert missing_share(data) == 0
    assert missing_share(data + b"made by a telephone" * 99) == 0
    assert missing_share(data[:2] + b"\xff\xe1\x00\x0e" + b"\xff\xd8\xff\xd9 preview"[:12] + data[2:]) == 0


@pytest.mark.parametrize("options", [one for one in OPTIONS if not one.get("progressive")], ids=str)
def test_half_of_the_data_is_half_of_the_image(options):
    data = cut(jpeg("noise", **options), 0.5)
    with Image.open(io.BytesIO(data)) as image:
        image.load()  # Pillow does not notice
    assert missing_share(data) == pytest.approx(0.5, abs=0.07)


def test_a_progressive_image_with_half_of_its_last_scan():
    assert missing_share(cut(jpeg("noise", progressive=True), 0.5)) == pytest.approx(0.5, abs=0.07)


def test_the_image_is_an_error_before_training(tmp_path, vae):
    (tmp_path / "images").mkdir()
    path = tmp_path / "images/a.jpg"
    path.write_bytes(cut(jpeg("noise"), 0.5))
    open_image(path)
    with pytest.raises(StageError, match=r"a\.jpg: the JPEG data end early: 5\d% of the image is missing; replace"):
        require_complete(path)
    assert "the JPEG data end early" in "".join(unreadable_images([path], Preflight()))
    for cache in ("memory", "off"):
        recipe = recipe_of(tmp_path, {"captions": ["a"]}, cache_latents=cache)
        with pytest.raises(StageError, match="the JPEG data end early"):
            dataset_of(recipe, vae)
    path.write_bytes(jpeg("noise"))
    assert torch.isfinite(dataset_of(recipe, vae).at(0).latents).all()
