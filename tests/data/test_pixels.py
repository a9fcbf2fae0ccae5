"""Pictures of every kind become the tensor a viewer would expect, or are refused by name."""

import numpy
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from pivotune.pipeline.data.open import open_picture
from pivotune.pipeline.data.variants import Variant, shown_picture
from pivotune.pipeline.errors import StageError


def test_values_run_from_minus_one_to_one(tmp_path):
    Image.new("RGB", (8, 8), (255, 0, 127)).save(tmp_path / "a.png")
    tensor = shown_picture(open_picture(tmp_path / "a.png"), (4, 4), Variant())
    assert tensor.shape == (3, 4, 4)
    assert tensor.dtype == torch.float32
    assert tensor[:, 0, 0].tolist() == pytest.approx([1.0, -1.0, -0.0039216], abs=1e-6)


def test_a_long_picture_is_cut_at_the_centre(tmp_path):
    picture = Image.new("RGB", (30, 10), "red")
    picture.paste(Image.new("RGB", (10, 10), "blue"), (10, 0))
    picture.save(tmp_path / "a.png")
    assert (
        shown_picture(open_picture(tmp_path / "a.png"), (10, 10), Variant())[:, 5, :].T.tolist()
        == [[-1.0, -1.0, 1.0]] * 10
    )


def test_a_picture_of_one_pixel_is_enlarged(tmp_path):
    Image.new("RGB", (1, 1), "red").save(tmp_path / "a.png")
    assert shown_picture(open_picture(tmp_path / "a.png"), (8, 8), Variant()).unique().tolist() == [-1.0, 1.0]


def test_the_exif_mark_turns_the_picture(tmp_path):
    picture = Image.new("RGB", (4, 2), "white")
    picture.putpixel((0, 0), (0, 0, 0))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    picture.save(tmp_path / "a.png", exif=exif)
    upright = open_picture(tmp_path / "a.png")
    assert upright.size == (2, 4)
    assert upright.getpixel((1, 0)) == (0, 0, 0)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_parts_are_white(tmp_path, mode):
    picture = Image.new("RGBA", (2, 1), (0, 0, 0, 0))
    picture.putpixel((0, 0), (0, 0, 0, 255))
    options = {}
    if mode == "P":
        picture = Image.new("P", (2, 1), 0)
        picture.putpalette([0, 0, 0, 10, 20, 30])
        picture.putpixel((1, 0), 1)
        options = {"transparency": 1}
    elif mode == "LA":
        picture = picture.convert("LA")
    picture.save(tmp_path / "a.png", **options)
    assert [open_picture(tmp_path / "a.png").getpixel((x, 0)) for x in (0, 1)] == [(0, 0, 0), (255, 255, 255)]


def test_sixteen_bits_are_scaled_not_cut(tmp_path):
    Image.fromarray(numpy.array([[0, 32768, 65535]], numpy.uint16)).save(tmp_path / "a.png")
    assert [open_picture(tmp_path / "a.png").getpixel((x, 0))[0] for x in range(3)] == [0, 128, 255]


def test_cmyk_and_gray_become_rgb(tmp_path):
    Image.new("CMYK", (2, 2), (0, 255, 255, 0)).save(tmp_path / "a.jpg", quality=100)
    red, green, blue = open_picture(tmp_path / "a.jpg").getpixel((0, 0))
    assert red > 230
    assert max(green, blue) < 30
    Image.new("L", (2, 2), 77).save(tmp_path / "b.png")
    assert open_picture(tmp_path / "b.png").getpixel((0, 0)) == (77, 77, 77)


def broken(folder):
    Image.effect_noise((64, 64), 90).save(folder / "cut.png")
    data = (folder / "cut.png").read_bytes()
    (folder / "cut.png").write_bytes(data[: len(data) // 2])
    (folder / "text.png").write_text("no picture", "utf-8")
    (folder / "empty.png").write_bytes(b"")
    about = PngInfo()
    about.add_text("comment", "x" * 2_000_000, zip=True)  # more than Pillow will unpack
    Image.new("RGB", (4, 4)).save(folder / "bomb.png", pnginfo=about)
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    frames[0].save(folder / "moving.webp", save_all=True, append_images=frames[1:])


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("cut.png", "not a readable picture"),
        ("text.png", "no picture, whatever its name says"),
        ("empty.png", "the file is empty"),
        ("missing.png", "not a readable picture"),
        ("bomb.png", "not a readable picture"),
        ("moving.webp", "2 frames"),
    ],
)
def test_what_is_no_single_whole_picture_is_refused_by_name(tmp_path, name, why):
    broken(tmp_path)
    with pytest.raises(StageError, match=why) as caught:
        open_picture(tmp_path / name)
    assert name in str(caught.value)
