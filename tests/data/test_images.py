"""Images of every format become the expected tensor, or are an error."""

import struct
import sys
from functools import cache

import numpy
import pytest
import torch
from bad_images import BROKEN, broken, png
from PIL import Image, features

from pivotune.pipeline.data import images
from pivotune.pipeline.data.augment import Variant, apply_variant
from pivotune.pipeline.data.images import inspect_image, open_alpha, open_image, open_mask
from pivotune.pipeline.errors import StageError


def test_values_are_between_minus_one_and_one(tmp_path):
    Image.new("RGB", (8, 8), (255, 0, 127)).save(tmp_path / "a.png")
    tensor = apply_variant(open_image(tmp_path / "a.png"), (4, 4), Variant())
    assert tensor.shape == (3, 4, 4)
    assert tensor.dtype == torch.float32
    assert tensor[:, 0, 0].tolist() == pytest.approx([1.0, -1.0, -0.0039216], abs=1e-6)


def test_a_long_image_is_cropped_at_the_centre(tmp_path):
    image = Image.new("RGB", (30, 10), "red")
    image.paste(Image.new("RGB", (10, 10), "blue"), (10, 0))
    image.save(tmp_path / "a.png")
    assert (
        apply_variant(open_image(tmp_path / "a.png"), (10, 10), Variant())[:, 5, :].T.tolist()
        == [[-1.0, -1.0, 1.0]] * 10
    )


def test_an_image_of_one_pixel_is_enlarged(tmp_path):
    Image.new("RGB", (1, 1), "red").save(tmp_path / "a.png")
    assert apply_variant(open_image(tmp_path / "a.png"), (8, 8), Variant()).unique().tolist() == [-1.0, 1.0]


def test_the_exif_orientation_rotates_the_image(tmp_path):
    image = Image.new("RGB", (4, 2), "white")
    image.putpixel((0, 0), (0, 0, 0))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    image.save(tmp_path / "a.png", exif=exif)
    upright = open_image(tmp_path / "a.png")
    assert upright.size == (2, 4)
    assert upright.getpixel((1, 0)) == (0, 0, 0)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_parts_are_white(tmp_path, mode):
    image = Image.new("RGBA", (2, 1), (0, 0, 0, 0))
    image.putpixel((0, 0), (0, 0, 0, 255))
    options = {}
    if mode == "P":
        image = Image.new("P", (2, 1), 0)
        image.putpalette([0, 0, 0, 10, 20, 30])
        image.putpixel((1, 0), 1)
        options = {"transparency": 1}
    elif mode == "LA":
        image = image.convert("LA")
    image.save(tmp_path / "a.png", **options)
    assert [open_image(tmp_path / "a.png").getpixel((x, 0)) for x in (0, 1)] == [(0, 0, 0), (255, 255, 255)]


def test_sixteen_bits_are_scaled_not_clipped(tmp_path):
    Image.fromarray(numpy.array([[0, 32768, 65535]], numpy.uint16)).save(tmp_path / "a.png")
    assert [open_image(tmp_path / "a.png").getpixel((x, 0))[0] for x in range(3)] == [0, 128, 255]


def test_cmyk_and_gray_become_rgb(tmp_path):
    Image.new("CMYK", (2, 2), (0, 255, 255, 0)).save(tmp_path / "a.jpg", quality=100)
    red, green, blue = open_image(tmp_path / "a.jpg").getpixel((0, 0))
    assert red > 230
    assert max(green, blue) < 30
    Image.new("L", (2, 2), 77).save(tmp_path / "b.png")
    assert open_image(tmp_path / "b.png").getpixel((0, 0)) == (77, 77, 77)


def test_sixteen_bits_a_colour_are_scaled(tmp_path):
    row = b"\0" + struct.pack(">3H", 0, 32896, 65535) * 8
    assert open_image(png(tmp_path, row * 8, 16, 2)).getpixel((3, 3)) == (0, 128, 255)


def test_sixteen_bits_of_gray_with_alpha(tmp_path):
    row = b"\0" + struct.pack(">2H", 32896, 65535) * 4 + struct.pack(">2H", 0, 0) * 4
    image = open_image(png(tmp_path, row * 8, 16, 4))
    assert image.getpixel((0, 0)) == (128, 128, 128)
    assert image.getpixel((7, 0)) == (255, 255, 255)  # transparent, on white


def test_one_bit_a_pixel(tmp_path):
    assert open_image(png(tmp_path, b"\0\xf0" * 8, 1, 0)).getpixel((0, 0)) == (255, 255, 255)
    assert open_image(tmp_path / "a.png").getpixel((7, 0)) == (0, 0, 0)


@pytest.mark.parametrize("name", ["a.webp", "a.gif", "a.bmp", "a.tiff", "a.avif", "a.jfif", "a.jpe", "a.jxl"])
def test_every_supported_format_can_be_read(tmp_path, name):
    if name.endswith("jxl"):
        pytest.importorskip("pillow_jxl")
    if name.endswith("avif") and not features.check("avif"):
        pytest.skip("this Pillow was built without AVIF")
    Image.new("RGB", (16, 9), (200, 30, 30)).save(tmp_path / name)
    assert inspect_image(tmp_path / name)[0] == (16, 9)
    assert open_image(tmp_path / name).getpixel((5, 5)) == pytest.approx((200, 30, 30), abs=8)


def test_the_format_is_that_of_the_content(tmp_path):
    Image.new("RGB", (9, 9), "red").save(tmp_path / "a.webp")
    (tmp_path / "a.webp").rename(tmp_path / "a.png")
    assert inspect_image(tmp_path / "a.png") == ((9, 9), "WEBP")
    assert open_image(tmp_path / "a.png").size == (9, 9)


def test_the_upright_size_is_known_without_decoding(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 8
    Image.new("RGB", (20, 10)).save(tmp_path / "a.jpg", exif=exif)
    assert inspect_image(tmp_path / "a.jpg")[0] == open_image(tmp_path / "a.jpg").size == (10, 20)


def test_the_first_image_of_an_mpo_is_used(tmp_path):
    pair = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
    pair[0].save(tmp_path / "a.jpg", format="MPO", save_all=True, append_images=pair[1:])
    assert inspect_image(tmp_path / "a.jpg")[1] == "MPO"
    assert open_image(tmp_path / "a.jpg").getpixel((3, 3))[0] > 200


@pytest.mark.parametrize(("name", "why"), BROKEN)
def test_corrupt_files_are_errors(tmp_path, name, why):
    broken(tmp_path)
    with pytest.raises(StageError, match=why) as caught:
        open_image(tmp_path / name)
    assert name in str(caught.value)


@pytest.mark.parametrize("size", [(1, 1), (1, 4000), (7, 100)])
def test_an_image_that_is_too_small_is_an_error(tmp_path, size):
    Image.new("RGB", size).save(tmp_path / "a.png")
    with pytest.raises(StageError, match=rf"a\.png: {size[0]}x{size[1]} pixels are too few"):
        inspect_image(tmp_path / "a.png")


def test_a_mask_is_resized_to_its_image_and_must_have_its_aspect_ratio(tmp_path):
    Image.new("L", (20, 10), 255).save(tmp_path / "a-mask.png")
    assert open_mask(tmp_path / "a-mask.png", (40, 20)).size == (40, 20)
    with pytest.raises(StageError, match="the mask is 20x10, its image 20x20"):
        open_mask(tmp_path / "a-mask.png", (20, 20))


def test_transparency_as_a_mask(tmp_path):
    image = Image.new("RGBA", (8, 8), (9, 9, 9, 255))
    image.putpixel((2, 3), (9, 9, 9, 0))
    image.save(tmp_path / "a.png")
    alpha = open_alpha(tmp_path / "a.png")
    assert (alpha.getpixel((2, 3)), alpha.getpixel((3, 2))) == (0, 255)
    image.convert("RGB").save(tmp_path / "b.png")
    assert open_alpha(tmp_path / "b.png").getextrema() == (255, 255)


def test_jpeg_xl_without_its_plugin_is_an_error_with_its_name(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_jxl", None)
    monkeypatch.delitem(Image.OPEN, "JXL", raising=False)
    monkeypatch.setattr(images, "_formats", cache(images._formats.__wrapped__))
    for head in (b"\xff\x0a", b"\0\0\0\x0cJXL \r\n\x87\n"):
        (tmp_path / "a.jxl").write_bytes(head + bytes(40))
        with pytest.raises(StageError, match=r"a\.jxl: a JPEG XL image; pip install pillow-jxl-plugin, or save it"):
            inspect_image(tmp_path / "a.jxl")


def test_a_corrupt_jpeg_xl_is_an_error_of_one_line(tmp_path):
    pytest.importorskip("pillow_jxl")
    (tmp_path / "a.jxl").write_bytes(b"\xff\x0a" + bytes(40))
    with pytest.raises(StageError, match=r"a\.jxl: not a readable image \([^\n]+\)$"):
        inspect_image(tmp_path / "a.jxl")
