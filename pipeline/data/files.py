"""The files of a concept's folder: images, and their caption files and masks. Opens none of them."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ..files import is_hidden

IMAGES = (
    ".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif", ".heic", ".heif",
    ".jxl",
)  # fmt: skip
OTHER_IMAGES = (  # not supported: drawing programs, cameras, rare formats
    ".psd", ".psb", ".xcf", ".kra", ".clip", ".afphoto", ".svg", ".ai", ".eps", ".cr2", ".cr3", ".nef", ".arw", ".dng",
    ".raf", ".orf", ".rw2", ".jp2", ".j2k", ".jxr", ".tga", ".ico", ".dds", ".exr", ".hdr", ".ppm", ".pgm", ".pcx",
    ".qoi", ".apng", ".jpg_large", ".jpeg_large",
)  # fmt: skip
MASKS = ("-mask", ".mask", "-masklabel")  # x-mask.png is the mask of x.jpg; the last is OneTrainer's spelling
_REPEATED = re.compile(r"([1-9]\d{0,5})_(.*\S)\s*")


def repeated_folder(name: str) -> tuple[int, str] | None:
    """Repeats and class of a folder named as for kohya's scripts (`10_red ring`); None for other names."""
    match = _REPEATED.fullmatch(name)
    return (int(match[1]), match[2].strip()) if match else None


def repeats_of(image: Path, folder: Path) -> tuple[int, str] | None:
    """Repeats and class of an image by the nearest folder with such a name, from its own up to `folder`."""
    for parent in image.parents:
        found = repeated_folder(parent.name)
        if found or parent == folder:
            return found
    return None


@dataclass
class Files:
    """`images` in the order of their paths, without masks; `siblings` finds files of the same stem.

    `skipped` are files in formats of images that are not supported, except sources of an image of the same stem.
    """

    images: list[Path] = field(default_factory=list)
    skipped: list[Path] = field(default_factory=list)
    _known: dict[tuple[Path, str], list[Path]] = field(default_factory=dict)
    _masks: dict[tuple[Path, str], list[Path]] = field(default_factory=dict)  # by the image's folder and stem

    def siblings(self, image: Path, *endings: str) -> list[Path]:
        """Files in the image's folder with its stem and one of these endings (`.txt`, `-mask.png`)."""
        return [path for ending in endings for path in self._known.get((image.parent, _key(image.stem + ending)), ())]

    def mask(self, image: Path) -> list[Path]:
        """The masks in an image's folder: none, one, or by mistake several."""
        return self._masks.get((image.parent, _key(image.stem)), [])

    def add(self, path: Path) -> None:
        """Add a file."""
        self._known.setdefault((path.parent, _key(path.name)), []).append(path)
        for suffix in MASKS:
            if path.stem.endswith(suffix) and path.name.lower().endswith(IMAGES):
                self._masks.setdefault((path.parent, _key(path.stem.removesuffix(suffix))), []).append(path)


def files_in(folder: Path, *, recursive: bool = False) -> Files:
    """All files of a folder, and with `recursive` of its subfolders. OSError when it cannot be read.

    Hidden names and folders of the system are skipped. Links are followed; a broken link is listed, so that it is
    reported.
    """
    found = Files()
    paths = sorted(_walk(folder, recursive, set()), key=lambda path: path.relative_to(folder).as_posix())
    for path in paths:
        found.add(path)
    images = [path for path in paths if path.name.lower().endswith(IMAGES)]
    masks = {mask for image in images for mask in found.mask(image)}
    found.images = [path for path in images if path not in masks]
    others = (path for path in paths if path.name.lower().endswith(OTHER_IMAGES))
    found.skipped = [path for path in others if not found.siblings(path, *IMAGES)]
    return found


def _walk(folder: Path, recursive: bool, parents: set[str]) -> Iterator[Path]:
    real = os.path.realpath(folder)
    if real in parents:  # a link to a parent folder
        return
    with os.scandir(folder) as entries:
        visible = [entry for entry in entries if not is_hidden(entry.name)]
    for entry in visible:
        if entry.is_dir():
            if recursive:
                yield from _walk(folder / entry.name, True, parents | {real})
        elif entry.is_file() or entry.is_symlink():
            yield folder / entry.name


def _key(name: str) -> str:
    """A name with a lower-case ending and composed accents, as on other systems."""
    stem, ending = os.path.splitext(name)
    return unicodedata.normalize("NFC", stem) + ending.lower()


def compose_accents(name: str) -> str:
    """A name with its accents composed: tables made on one system name files of another."""
    return unicodedata.normalize("NFC", name)
