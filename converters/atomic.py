"""Files that appear whole and checked, or not at all."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from .disk import failed, replace, sync_folder
from .errors import ConvertError
from .temporary import Temporary, begun, part, sweep, sync_files

Fill = Callable[[BinaryIO], None]
Verify = Callable[[str], None]
BUFFER = 1 << 13  # bytes; being asked for, it spares the question whether the file is a terminal
MOST_UNNAMED = 32  # temporary files of a batch: each costs a descriptor until the end


class Batch:
    """Files that are written beside their places and appear together; made by `batch`."""

    def __init__(
        self, overwrite: bool, dry: bool = False, claimed: set[str] | None = None, repeatable: bool = False
    ) -> None:
        self.overwrite, self.dry, self.repeatable = overwrite, dry, repeatable
        self._claimed = set() if claimed is None else claimed
        self._staged: dict[str, Temporary] = {}  # by place
        self._folders: dict[str, bool] = {}  # that were looked at: whether they were made on the way
        self._own: list[str] = []
        self._whole: dict[str, str] = {}  # folders to their absolute paths

    def add(self, path: Path, fill: Fill, verify: Verify | None = None) -> None:
        """Write a temporary file for `path` and let `verify` read it back.

        Raises ConvertError if the place is taken (by a file, or by another one of this batch or command).
        """
        text = os.fspath(path)
        folder, name = os.path.split(text)
        place = self._folded(folder, name)
        if place in self._claimed:
            raise taken(path, True)
        if os.path.lexists(text):
            if not self.overwrite:
                raise taken(path)
            if os.path.isdir(text):
                raise ConvertError(f"{path}: is a folder")
        self._claimed.add(place)
        self._own.append(place)
        if self.dry:
            return
        try:
            if folder not in self._folders:
                self._make_folder(folder)
            temporary = self._staged[text] = begun(folder, len(self._staged) < MOST_UNNAMED)
            with open(temporary.descriptor, "wb", BUFFER, closefd=False) as file:
                fill(file)
        except (OSError, ValueError) as error:  # ValueError: a NUL in the path
            raise failed(path, "cannot be written", error) from error
        if verify is not None:
            verify(temporary.path)
        if temporary.named:
            temporary.close()

    def _folded(self, folder: str, name: str) -> str:
        """The place under the one name by which a system that minds neither case nor composition knows it."""
        whole = self._whole.get(folder)
        if whole is None:
            whole = self._whole[folder] = os.path.abspath(folder)
        return f"{whole}/{name.lower() if name.isascii() else unicodedata.normalize('NFC', name.casefold())}"

    def _make_folder(self, folder: str) -> None:
        if folder in self._folders:
            return
        above = os.path.dirname(folder)
        if above == folder or os.path.isdir(folder):  # the current folder (empty) and the root are there
            self._folders[folder] = False
            sweep(folder or os.curdir)
            return
        self._make_folder(above)
        with suppress(FileExistsError):  # another command has made it meanwhile
            os.mkdir(folder)
        self._folders[folder] = True

    def commit(self) -> None:
        """Give every file its name. If one cannot have it, those placed so far are taken back, old files put back.

        Each file appears in one step. A kill between two of them leaves the first new and the second old, both whole.
        """
        placed: list[str] = []
        kept: dict[str, str | None] = {}  # place -> the old file under a temporary name, None if there was none
        lasting = not self.repeatable or (self.overwrite and any(map(os.path.lexists, self._staged)))
        try:
            if lasting:
                sync_files(self._staged)
            for path, temporary in self._staged.items():
                if len(self._staged) > 1:
                    _keep(path, kept, self.overwrite)
                try:
                    _place(temporary, path, self.overwrite)
                except OSError as error:
                    raise failed(path, "cannot be written", error) from error
                placed.append(path)
        except BaseException:
            for path in placed:
                with suppress(OSError, KeyError):  # KeyError: the old one could not be kept, the new one is whole
                    old = kept.pop(path)
                    os.replace(old, path) if old else os.unlink(path)
            raise
        finally:
            for aside in filter(None, kept.values()):
                with suppress(OSError):
                    os.unlink(aside)
        folders = {*self._folders, *(os.path.dirname(folder) for folder, made in self._folders.items() if made)}
        self._folders.clear()
        self._own.clear()
        for folder in folders if lasting else ():
            sync_folder(folder or os.curdir)

    def discard(self) -> None:
        """Remove what was written and has no name yet."""
        for temporary in self._staged.values():
            temporary.discard()
        if not self.dry:
            self._claimed.difference_update(self._own)
        for folder in reversed([folder for folder, made in self._folders.items() if made]):
            with suppress(OSError):  # somebody else has put something there
                os.rmdir(folder)


@contextmanager
def batch(
    *, overwrite: bool = False, dry: bool = False, claimed: set[str] | None = None, repeatable: bool = False
) -> Iterator[Batch]:
    """Several files that appear together when the block ends well; nothing is left behind when it does not.

    `dry` checks the places and writes nothing. `claimed` are places that other batches of the same command have
    written to: not even `overwrite` lets two embeddings meet on one file.

    `repeatable`: the files are made from others, which stay, so they are brought to the disk by the system in its own
    time, as those that `cp` writes. A killed process loses nothing by that, and after a power cut the command is given
    again. Where an old file, which may be the source, is replaced, all are on the disk before the first has its name.
    """
    files = Batch(overwrite, dry, claimed, repeatable)
    try:
        yield files
        files.commit()
    finally:
        files.discard()


def write_file(path: Path, fill: Fill, *, verify: Verify | None = None, overwrite: bool = False) -> None:
    """One file: written beside its place, flushed, read back by `verify`, and only then given its name."""
    with batch(overwrite=overwrite) as files:
        files.add(path, fill, verify)


def taken(path: Path | str, just_now: bool = False) -> ConvertError:
    """The one wording for a file that would be lost."""
    if just_now:
        return ConvertError(
            f"{path}: was written just now for another embedding; give one of them another name (--name)"
        )
    return ConvertError(f"{path}: exists already; choose another name, or pass --overwrite")


def _place(temporary: Temporary, path: str, overwrite: bool) -> None:
    if overwrite:
        replace(temporary.with_a_name(path), path)
        return
    for _ in range(1 if temporary.named else 2):
        try:
            temporary.link(path)
            return
        except FileExistsError:
            raise taken(path) from None
        except OSError:  # a file system without hard links (exFAT), or one that gives nameless files no name
            temporary.with_a_name(path)
    _claim(temporary.path, path)


def _claim(temporary: str, path: str) -> None:
    """A name that must be free, where there are no hard links: an empty file takes it, and is replaced."""
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    except FileExistsError:
        raise taken(path) from None
    try:
        replace(temporary, path)
    except OSError:
        os.unlink(path)
        raise


def _keep(path: str, kept: dict[str, str | None], overwrite: bool) -> None:
    """A second name for a file that is about to be replaced; none where there are no hard links."""
    aside = part(os.path.dirname(path)) if overwrite and os.path.lexists(path) else None
    with suppress(OSError, AttributeError, NotImplementedError):
        if aside is not None:
            if os.link in os.supports_follow_symlinks:
                os.link(path, aside, follow_symlinks=False)
            else:  # Windows, which links a link itself
                os.link(path, aside)
        kept[path] = aside
