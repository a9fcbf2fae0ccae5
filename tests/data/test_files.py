"""The files of a concept's folder: images, masks and caption files."""

import unicodedata
from pathlib import Path

import pytest

from pivotune.pipeline.data.captions import collect_captions
from pivotune.pipeline.data.files import files_in, repeats_of
from pivotune.pipeline.recipe.model import Concept


def names(folder, **options):
    return [path.relative_to(folder).as_posix() for path in files_in(folder, **options).images]


def make(folder, *paths):
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(b"")


def test_images_of_every_ending_whatever_its_case(tmp_path):
    make(tmp_path, "b.PNG", "a.Jpeg", "c.webp", "d.tiff", "e.HEIC", "f.gif", "notes.md", "a.txt", ".hidden.png")
    assert names(tmp_path) == ["a.Jpeg", "b.PNG", "c.webp", "d.tiff", "e.HEIC", "f.gif"]


def test_folders_inside_count_only_when_asked(tmp_path):
    make(tmp_path, "b.png", "sub/a.png", "sub/deep/c.png", ".git/d.png", "a.png/e.png")
    assert names(tmp_path) == ["b.png"]
    assert names(tmp_path, recursive=True) == ["a.png/e.png", "b.png", "sub/a.png", "sub/deep/c.png"]


def test_links_are_followed_once_and_a_dead_one_is_listed(tmp_path):
    make(tmp_path / "there", "a.png")
    make(tmp_path / "elsewhere", "x.png")
    (tmp_path / "there/linked.png").symlink_to(tmp_path / "elsewhere/x.png")
    (tmp_path / "there/dead.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "there/other").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "there/round").symlink_to(tmp_path / "there")
    assert names(tmp_path / "there", recursive=True) == ["a.png", "dead.png", "linked.png", "other/x.png"]


def test_masks_are_no_images_but_only_where_their_image_is(tmp_path):
    make(tmp_path, "a.jpg", "a-mask.png", "b.png", "b.mask.PNG", "c.webp", "c-masklabel.png", "iron-mask.png")
    files = files_in(tmp_path)
    assert [path.name for path in files.images] == ["a.jpg", "b.png", "c.webp", "iron-mask.png"]
    masks = [[mask.name for mask in files.mask(image)] for image in files.images]
    assert masks == [["a-mask.png"], ["b.mask.PNG"], ["c-masklabel.png"], []]


def test_names_in_other_spellings_of_the_same_accents_belong_together(tmp_path):
    """A folder packed on one system and unpacked on another."""
    image, caption = unicodedata.normalize("NFD", "café 日本.png"), unicodedata.normalize("NFC", "café 日本.TXT")
    make(tmp_path, image, caption)
    files = files_in(tmp_path)
    assert [path.name for path in files.siblings(files.images[0], ".txt")] == [caption]


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("10_red ring/a.png", (10, "red ring")), ("3_a_b/in/a.png", (3, "a_b")), ("in/a.png", None),
        ("2_x/4_y/a.png", (4, "y")), ("0_x/a.png", None), ("10_/a.png", None), ("10x/a.png", None),
    ],
)  # fmt: skip
def test_repeats_and_class_by_the_nearest_folder(path, found):
    folder = Path("/data/in")
    assert repeats_of(folder / path, folder) == found
    assert repeats_of(folder.with_name("7_cat") / "a.png", folder.with_name("7_cat")) == (7, "cat")
    assert repeats_of(Path("/9_z/in/a.png"), Path("/9_z/in")) is None


def test_folders_of_systems_hold_no_images(tmp_path):
    """Previews of a file server, deleted files, metadata of a Mac."""
    folders = ("@eaDir", "sub/@eaDir", "#recycle", "__MACOSX", "Thumbnails", ".thumbnails", "$RECYCLE.BIN")
    make(tmp_path, "a.png", "._a.png", *(f"{folder}/x.jpg" for folder in folders), "thumbs/b.jpg")
    assert names(tmp_path, recursive=True) == ["a.png", "thumbs/b.jpg"]


def test_files_that_look_like_images_and_are_not_read_are_named(tmp_path):
    """A source beside its image is no mistake."""
    make(tmp_path, "a.png", "a.psd", "b.PSD", "c.cr2", "d.jpe", "e.jxl", "f.md", "sub/g.svg")
    assert names(tmp_path) == ["a.png", "d.jpe", "e.jxl"]
    assert [path.name for path in files_in(tmp_path).skipped] == ["b.PSD", "c.cr2"]
    warnings = collect_captions(Concept(tmp_path, ("x",))).warnings
    end = "in a format that is not supported: b.PSD, c.cr2; save them as PNG or JPEG, or remove them"
    assert warnings == [f"2 files are images {end}"]
