"""Files that appear whole and checked, or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from .errors import ConvertError

Fill = Callable[[BinaryIO], None]
Verify = Callable[[Path], None]


class Batch:
    """Files that are written beside their places and appear together; made by `batch`."""

    def __init__(self, overwrite: bool) -> None:
        self.overwrite = overwrite
        self._staged: dict[Path, Path] = {}  # place -> temporary file

    def add(self, path: Path, fill: Fill, verify: Verify | None = None) -> None:
        """Write a temporary file beside `path`, bring it to the disk, and let `verify` read it back.

        Raises ConvertError if the place is taken (by a file, or by another one of this batch).
        """
        if path in self._staged or (os.path.lexists(path) and not self.overwrite):
            raise taken(path)
        if path.is_dir():
            raise ConvertError(f"{path}: is a folder")
        temporary = path.parent / f".{secrets.token_hex(8)}.part"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(temporary, "xb") as file:
                self._staged[path] = temporary
                fill(file)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise ConvertError(f"{path}: cannot be written ({error.strerror or error})") from error
        if verify is not None:
            verify(temporary)

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
        for folder in {path.parent for path in placed}:
            _sync_folder(folder)

    def discard(self) -> None:
        """Remove what was written and has no name yet."""
        for temporary in self._staged.values():
            temporary.unlink(missing_ok=True)


@contextmanager
def batch(*, overwrite: bool = False) -> Iterator[Batch]:
    """Several files that appear together when the block ends well; nothing is left behind when it does not."""
    files = Batch(overwrite)
    try:
        yield files
        files.commit()
    finally:
        files.discard()


def write_file(path: Path, fill: Fill, *, verify: Verify | None = None, overwrite: bool = False) -> None:
    """One file: written beside its place, flushed, read back by `verify`, and only then given its name."""
    with batch(overwrite=overwrite) as files:
        files.add(path, fill, verify)


def taken(path: Path) -> ConvertError:
    """The one wording for a file that would be lost."""
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
