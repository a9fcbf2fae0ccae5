"""Files that appear whole and checked, or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from .errors import ConvertError

Fill = Callable[[BinaryIO], None]
Verify = Callable[[Path], None]


class Batch:
    """Files that are written beside their places and appear together; made by `batch`."""

    def __init__(self, overwrite: bool, dry: bool = False, claimed: set[Path] | None = None) -> None:
        self.overwrite, self.dry = overwrite, dry
        self._claimed = set() if claimed is None else claimed
        self._staged: dict[Path, Path] = {}  # place -> temporary file
        self._folders: list[Path] = []  # made on the way
        self._own: list[Path] = []

    def add(self, path: Path, fill: Fill, verify: Verify | None = None) -> None:
        """Write a temporary file beside `path`, bring it to the disk, and let `verify` read it back.

        Raises ConvertError if the place is taken (by a file, or by another one of this batch or command).
        """
        place = path.absolute()
        if place in self._claimed or (os.path.lexists(path) and not self.overwrite):
            raise taken(path, place in self._claimed)
        if path.is_dir():
            raise ConvertError(f"{path}: is a folder")
        self._claimed.add(place)
        self._own.append(place)
        if self.dry:
            return
        temporary = path.parent / f".{os.urandom(8).hex()}.part"
        try:
            self._make_folder(path.parent)
            with open(temporary, "xb") as file:
                self._staged[path] = temporary
                fill(file)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise ConvertError(f"{path}: cannot be written ({error.strerror or error})") from error
        if verify is not None:
            verify(temporary)

    def _make_folder(self, folder: Path) -> None:
        if not folder.is_dir():
            self._make_folder(folder.parent)
            folder.mkdir(exist_ok=True)
            self._folders.append(folder)

    def commit(self) -> None:
        """Give every file its name. If a name was taken meanwhile, the files placed so far are taken back."""
        placed: list[Path] = []
        try:
            for path, temporary in self._staged.items():
                _place(temporary, path, self.overwrite)
                placed.append(path)
        except BaseException:
            if not self.overwrite:
                for path in placed:
                    path.unlink(missing_ok=True)
            raise
        self._folders.clear()
        self._own.clear()
        for folder in {path.parent for path in placed}:
            _sync_folder(folder)

    def discard(self) -> None:
        """Remove what was written and has no name yet."""
        for temporary in self._staged.values():
            temporary.unlink(missing_ok=True)
        if not self.dry:
            self._claimed.difference_update(self._own)
        for folder in reversed(self._folders):
            with suppress(OSError):  # somebody else has put something there
                folder.rmdir()


@contextmanager
def batch(*, overwrite: bool = False, dry: bool = False, claimed: set[Path] | None = None) -> Iterator[Batch]:
    """Several files that appear together when the block ends well; nothing is left behind when it does not.

    `dry` checks the places and writes nothing. `claimed` are places that other batches of the same command have
    written to: not even `overwrite` lets two words meet on one file.
    """
    files = Batch(overwrite, dry, claimed)
    try:
        yield files
        files.commit()
    finally:
        files.discard()


def write_file(path: Path, fill: Fill, *, verify: Verify | None = None, overwrite: bool = False) -> None:
    """One file: written beside its place, flushed, read back by `verify`, and only then given its name."""
    with batch(overwrite=overwrite) as files:
        files.add(path, fill, verify)


def taken(path: Path, just_now: bool = False) -> ConvertError:
    """The one wording for a file that would be lost."""
    if just_now:
        return ConvertError(f"{path}: was written just now for another word; give one of them another name (--name)")
    return ConvertError(f"{path}: exists already; choose another name, or pass --overwrite")


def _place(temporary: Path, path: Path, overwrite: bool) -> None:
    if overwrite:
        os.replace(temporary, path)
        return
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise taken(path) from None
    except OSError:  # a file system without hard links: claim the name first
        try:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        except FileExistsError:
            raise taken(path) from None
        os.replace(temporary, path)


def _sync_folder(folder: Path) -> None:
    if not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
