"""The files of a concept's folder: images, and what stands beside them. Opens none of them."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

IMAGES = (
    ".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif", ".heic", ".heif",
)  # fmt: skip
MASKS = ("-mask", ".mask", "-masklabel")  # x-mask.png is the mask of x.jpg; the last is OneTrainer's spelling


@dataclass
class Files:
    """`images` in the order of their paths, without masks; `beside` finds files of the same stem."""

    images: list[Path] = field(default_factory=list)
    _known: dict[tuple[Path, str], list[Path]] = field(default_factory=dict)
    _masks: dict[tuple[Path, str], list[Path]] = field(default_factory=dict)  # by the image's folder and stem

    def beside(self, image: Path, *endings: str) -> list[Path]:
        """Files beside the image that are called as it is, with one of these endings (`.txt`, `-mask.png`)."""
        return [path for ending in endings for path in self._known.get((image.parent, _key(image.stem + ending)), ())]

    def mask(self, image: Path) -> list[Path]:
        """The masks beside an image: none, one, or by mistake several."""
        return self._masks.get((image.parent, _key(image.stem)), [])

    def add(self, path: Path) -> None:
        """Take a file in."""
        self._known.setdefault((path.parent, _key(path.name)), []).append(path)
        for mark in MASKS:
            if path.stem.endswith(mark) and path.name.lower().endswith(IMAGES):
                self._masks.setdefault((path.parent, _key(path.stem.removesuffix(mark))), []).append(path)


def files_in(folder: Path, *, recursive: bool = False) -> Files:
    """All files of a folder, and with `recursive` of the folders in it. OSError when it cannot be read.

    Names that start with a dot are left out. A link counts as what it leads to; one that leads nowhere is listed, so
    that it is said and not lost.
    """
    found = Files()
    paths = sorted(_walk(folder, recursive, set()), key=lambda path: path.relative_to(folder).as_posix())
    for path in paths:
        found.add(path)
    images = [path for path in paths if path.name.lower().endswith(IMAGES)]
    masks = {mask for image in images for mask in found.mask(image)}
    found.images = [path for path in images if path not in masks]
    return found


def _walk(folder: Path, recursive: bool, above: set[str]) -> Iterator[Path]:
    real = os.path.realpath(folder)
    if real in above:  # a link to a folder that it lies in
        return
    with os.scandir(folder) as entries:
        visible = [entry for entry in entries if not entry.name.startswith(".")]
    for entry in visible:
        if entry.is_dir():
            if recursive:
                yield from _walk(folder / entry.name, True, above | {real})
        elif entry.is_file() or entry.is_symlink():
            yield folder / entry.name


def _key(name: str) -> str:
    """A name whose ending is written in small letters and whose accents are composed, as they are in other systems."""
    stem, ending = os.path.splitext(name)
    return unicodedata.normalize("NFC", stem) + ending.lower()


def composed(name: str) -> str:
    """A name with its accents composed: tables made on one system name files of another."""
    return unicodedata.normalize("NFC", name)
