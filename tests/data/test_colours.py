"""Images with ICC profiles become sRGB."""

from __future__ import annotations

import pytest
from colour_profiles import ADOBE_RGB, DISPLAY_P3, SRGB, display, gray, printer
from PIL import Image, ImageCms

from pivotune.pipeline.data.images import in_srgb, open_image

P3 = display(DISPLAY_P3)


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp", "a.tiff", "a.avif"])
def test_display_p3_is_converted_in_every_format(tmp_path, name):
    options = {"lossless": True} if name == "a.webp" else {} if name in ("a.png", "a.tiff") else {"quality": 100}
    Image.new("RGB", (16, 16), (200, 60, 40)).save(tmp_path / name, icc_profile=P3, **options)
    assert open_image(tmp_path / name).getpixel((3, 3)) == pytest.approx((217, 42, 23), abs=2)


def test_adobe_rgb_is_converted():
    image = Image.new("RGB", (1, 1), (150, 100, 60))
    assert in_srgb(image, display(ADOBE_RGB, 2.2)).getpixel((0, 0)) == pytest.approx((167, 100, 55), abs=3)


def test_white_and_black_stay_and_out_of_range_colours_are_clipped():
    image = Image.new("RGB", (3, 1))
    image.putdata([(255, 255, 255), (0, 0, 0), (255, 0, 0)])
    assert list(in_srgb(image, P3).get_flattened_data()) == [(255, 255, 255), (0, 0, 0), (255, 0, 0)]


def test_gray_with_another_curve(tmp_path):
    """In a gamma of 1 half of the light is 128, in sRGB 188."""
    Image.new("L", (8, 8), 128).save(tmp_path / "a.png", icc_profile=gray(1.0))
    assert open_image(tmp_path / "a.png").getpixel((0, 0)) == pytest.approx((188, 188, 188), abs=1)
    Image.new("LA", (8, 8), (128, 255)).save(tmp_path / "b.png", icc_profile=gray(1.0))
    assert open_image(tmp_path / "b.png").getpixel((0, 0)) == pytest.approx((188, 188, 188), abs=1)


def test_cmyk_is_converted_by_its_profile(tmp_path):
    """Full cyan is Lab (60, -40, -40) in it, and paper white."""
    image = Image.new("CMYK", (16, 16), (255, 0, 0, 0))
    image.paste((0, 0, 0, 0), (8, 0, 16, 16))
    image.save(tmp_path / "a.jpg", quality=100, icc_profile=printer())
    opened = open_image(tmp_path / "a.jpg")
    assert opened.getpixel((2, 2)) == pytest.approx((0, 162, 215), abs=12)
    assert opened.getpixel((13, 13)) == pytest.approx((255, 255, 255), abs=3)


def test_alpha_is_kept_and_laid_on_white(tmp_path):
    image = Image.new("RGBA", (8, 8), (200, 60, 40, 255))
    image.putpixel((0, 0), (200, 60, 40, 0))
    image.putpixel((1, 0), (200, 60, 40, 128))
    image.save(tmp_path / "a.png", icc_profile=P3)
    opened = open_image(tmp_path / "a.png")
    assert opened.getpixel((4, 4)) == pytest.approx((217, 42, 23), abs=2)
    assert opened.getpixel((0, 0)) == (255, 255, 255)
    assert opened.getpixel((1, 0)) == pytest.approx((236, 148, 139), abs=3)


def test_a_palette_with_a_profile(tmp_path):
    Image.new("RGB", (8, 8), (200, 60, 40)).quantize(2).save(tmp_path / "a.png", icc_profile=P3)
    assert open_image(tmp_path / "a.png").getpixel((3, 3)) == pytest.approx((217, 42, 23), abs=3)


@pytest.mark.parametrize("profile", [display(SRGB), ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()])
def test_images_in_srgb_do_not_change_by_a_bit(profile):
    noise = Image.effect_noise((64, 64), 90)
    image = Image.merge("RGB", (noise, noise.rotate(90), noise.rotate(180)))
    assert in_srgb(image, profile).tobytes() == image.tobytes()


@pytest.mark.parametrize("profile", [b"", b"nothing", P3[:200], printer(), None])
def test_a_profile_that_does_not_fit_is_ignored(profile):
    image = Image.new("RGB", (4, 4), (200, 60, 40))
    assert in_srgb(image, profile).tobytes() == image.tobytes()


def test_cmyk_without_a_usable_profile_is_converted_as_before():
    image = Image.new("CMYK", (2, 2), (0, 255, 255, 0))
    assert in_srgb(image, P3).getpixel((0, 0)) == in_srgb(image, None).getpixel((0, 0)) == (255, 0, 0)
