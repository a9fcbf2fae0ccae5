"""Images and captions from elsewhere."""

import json
import os

import pytest
from PIL import Image

from pivotune.pipeline.data import images as opening
from pivotune.pipeline.data.captions import collect_captions
from pivotune.pipeline.data.images import inspect_image, open_image
from pivotune.pipeline.errors import StageError
from pivotune.pipeline.recipe.model import Concept


def folder_of(tmp_path, name="a.png"):
    (tmp_path / "p").mkdir()
    Image.new("RGB", (16, 16)).save(tmp_path / "p" / name)
    return tmp_path / "p"


def test_half_a_character_in_a_caption_is_refused(tmp_path):
    folder = folder_of(tmp_path)
    (tmp_path / "t.jsonl").write_text(json.dumps({"file_name": "a.png", "text": "a \ud800 cat"}))
    read = collect_captions(Concept(images=folder, captions=str(tmp_path / "t.jsonl")))
    assert not read.images
    assert "lone surrogate" in read.problems[0]


def test_a_caption_in_utf_16_without_a_mark_is_refused(tmp_path):
    folder = folder_of(tmp_path)
    (folder / "a.txt").write_bytes("a cat".encode("utf-16-le"))
    read = collect_captions(Concept(images=folder, captions="beside"))
    assert not read.images
    assert "save it as UTF-8" in read.problems[0]


def test_a_caption_of_a_megabyte_is_refused(tmp_path):
    folder = folder_of(tmp_path)
    (folder / "a.txt").write_text("cat " * 300_000)
    assert "longer than 10,000" in collect_captions(Concept(images=folder, captions="beside")).problems[0]


@pytest.mark.parametrize("name", ["a\nb.png", "a\x1b[31m.png", "a\udcff.png"])
def test_a_name_with_control_characters_is_an_error_and_escaped(tmp_path, name):
    folder = folder_of(tmp_path, name)
    read = collect_captions(Concept(images=folder, captions=("a cat",)))
    assert not read.images
    assert read.problems[0].isascii()
    assert read.problems[0].isprintable()


def test_a_fifo_or_device_as_caption_or_image_is_refused(tmp_path):
    folder = folder_of(tmp_path)
    os.mkfifo(folder / "a.txt")
    read = collect_captions(Concept(images=folder, captions="beside"))
    assert "regular file" in read.problems[0]
    (folder / "b.png").symlink_to("/dev/zero")
    with pytest.raises(StageError, match="regular file"):
        inspect_image(folder / "b.png")


def test_an_image_of_too_many_pixels_is_an_error_before_decoding(tmp_path):
    Image.new("1", (12_000, 12_000)).save(tmp_path / "a.png")
    with pytest.raises(StageError, match="12000x12000 pixels are too many"):
        inspect_image(tmp_path / "a.png")


def test_a_name_in_a_table_or_of_a_folder_never_reaches_the_terminal_raw(tmp_path):
    folder = folder_of(tmp_path)
    (folder / "b\x1b[31m").mkdir()
    Image.new("RGB", (16, 16)).save(folder / "b\x1b[31m" / "b.png")
    (tmp_path / "t.jsonl").write_text(json.dumps({"file_name": "c\x1b[31m\n.png", "text": "a cat"}))
    for captions in (str(tmp_path / "t.jsonl"), "beside", "file-name"):
        read = collect_captions(Concept(images=folder, captions=captions, recursive=True))
        assert read.problems
        assert all(text.isprintable() for text in read.problems)


def test_a_jpeg_of_too_many_pixels_is_decoded_at_a_reduced_size(tmp_path, monkeypatch):
    Image.new("RGB", (640, 480), (200, 9, 9)).save(tmp_path / "a.jpg")
    assert open_image(tmp_path / "a.jpg").size == (640, 480)
    monkeypatch.setattr(opening, "MOST_PIXELS", 640 * 480 // 5)
    assert inspect_image(tmp_path / "a.jpg") == ((640, 480), "JPEG")
    assert open_image(tmp_path / "a.jpg").size == (160, 120)
    Image.new("RGB", (640, 480)).save(tmp_path / "a.png")
    with pytest.raises(StageError, match="pixels are too many"):
        open_image(tmp_path / "a.png")
