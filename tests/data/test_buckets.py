"""Buckets, crop boxes and SDXL's size conditioning against numbers calculated by hand."""

import pytest

from pivotune.pipeline.data.buckets import (
    bucket_shapes,
    crop_box,
    crop_shape,
    nearest_shape,
    size_conditioning,
    visible_share,
)


def test_buckets_of_a_real_resolution():
    """Those of kohya's scripts for 512 with a least side of 256 and a greatest of 1024."""
    assert bucket_shapes(512, 64) == (
        (256, 832), (256, 896), (256, 960), (256, 1024), (320, 704), (320, 768), (384, 640), (448, 576), (512, 512),
        (576, 448), (640, 384), (704, 320), (768, 320), (832, 256), (896, 256), (960, 256), (1024, 256),
    )  # fmt: skip


@pytest.mark.parametrize(("resolution", "step"), [(512, 64), (1024, 64), (768, 64), (64, 8), (16, 8), (520, 64)])
def test_buckets_keep_area_and_step(resolution, step):
    shapes = bucket_shapes(resolution, step)
    assert (resolution // step * step,) * 2 in shapes
    assert {(height, width) for width, height in shapes} == set(shapes)
    for width, height in shapes:
        assert width % step == height % step == 0
        assert width * height <= resolution**2
        assert width * height > 0.7 * (resolution // step * step) ** 2


def test_a_step_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="steps of 64 pixels do not fit a resolution of 32"):
        bucket_shapes(32, 64)


@pytest.mark.parametrize(
    ("size", "shape"),
    [((500, 500), (512, 512)), ((4000, 3000), (576, 448)), ((3000, 4000), (448, 576)), ((1, 99), (256, 1024))],
)
def test_the_nearest_bucket_is_taken(size, shape):
    assert nearest_shape(size, bucket_shapes(512, 64)) == shape


def test_without_buckets_all_are_square():
    assert crop_shape((400, 100), 512, None) == (512, 512)


def test_the_crop_box_has_the_aspect_ratio():
    assert crop_box((300, 100), (50, 50)) == (100, 0, 200, 100)
    assert crop_box((300, 100), (50, 50), (0, 0)) == (0, 0, 100, 100)
    assert crop_box((300, 100), (50, 50), (1, 1)) == (200, 0, 300, 100)
    assert crop_box((100, 300), (50, 100), (0.5, 0.25)) == (0, 25, 100, 225)
    assert crop_box((1, 1), (64, 64)) == (0, 0, 1, 1)


def test_visible_share():
    assert visible_share((300, 100), (50, 50)) == pytest.approx(1 / 3)
    assert visible_share((100, 100), (64, 64)) == 1


def test_size_conditioning_of_sdxl():
    assert size_conditioning((300, 100), (50, 50), (0.5, 0.5), False) == (100, 300, 0, 50, 50, 50)
    assert size_conditioning((300, 100), (50, 50), (0, 0.5), False) == (100, 300, 0, 0, 50, 50)
    assert size_conditioning((300, 100), (50, 50), (0, 0.5), True) == (100, 300, 0, 100, 50, 50)
    assert size_conditioning((10, 30), (40, 60), (0.5, 1), False) == (30, 10, 60, 0, 60, 40)
