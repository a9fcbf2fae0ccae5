"""Files that appear complete and verified, or not at all."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from .disk import (
    Temporary,
    create_temporary,
    failed,
    remove_leftovers,
    replace,
    sync_files,
    sync_folder,
    temporary_name,
)
from .errors import ConvertError

Fill = Callable[[BinaryIO], None]
Verify = Callable[[str], None]
BUFFER = 1 << 13  # bytes; a fixed size spares an isatty call
MOST_UNNAMED = 32  # temporary files without a name: each keeps a descriptor open until the end


class Batch:
    """Files that are written to temporary files and appear together; made by `batch`."""

    def __init__(
        self, overwrite: bool, dry: bool = False, claimed: set[str] | None = None, repeatable: bool = False
    ) -> None:
        self.overwrite, self.dry, self.repeatable = overwrite, dry, repeatable
        self._claimed = set() if claimed is None else claimed
        self._staged: dict[str, Temporary] = {}  # by place
        self._folders: dict[str, bool] = {}  # that were looked at: whether they were made on the way
        self._own: list[str] = []
        self._absolute: dict[str, str] = {}  # folders to their absolute paths

    def add(self, path: Path, fill: Fill, verify: Verify | None = None) -> None:
        """Write a temporary file for `path` and let `verify` read it back.

        Raises ConvertError if the path exists, or another file of this batch or command has it.
        """
        text = os.fspath(path)
        folder, name = os.path.split(text)
        place = self._normalized(folder, name)
        if place in self._claimed:
            raise already_exists(path, True)
        if os.path.lexists(text):
            if not self.overwrite:
                raise already_exists(path)
            if os.path.isdir(text):
                raise ConvertError(f"{path}: is a folder")
        self._claimed.add(place)
        self._own.append(place)
        if self.dry:
            return
        try:
            if folder not in self._folders:
                self._make_folder(folder)
            temporary = self._staged[text] = create_temporary(folder, len(self._staged) < MOST_UNNAMED)
            with open(temporary.descriptor, "wb", BUFFER, closefd=False) as file:
                fill(file)
        except (OSError, ValueError) as error:  # ValueError: a NUL in the path
            raise failed(path, "cannot be written", error) from error
        if verify is not None:
            verify(temporary.path)
        if temporary.named:
            temporary.close()

    def _normalized(self, folder: str, name: str) -> str:
        """The path as a case-insensitive, normalizing file system compares it."""
        absolute = self._absolute.get(folder)
        if absolute is None:
            absolute = self._absolute[folder] = os.path.abspath(folder)
        return f"{absolute}/{name.lower() if name.isascii() else unicodedata.normalize('NFC', name.casefold())}"

    def _make_folder(self, folder: str) -> None:
        if folder in self._folders:
            return
        above = os.path.dirname(folder)
        if above == folder or os.path.isdir(folder):  # the current folder (empty) and the root exist
            self._folders[folder] = False
            remove_leftovers(folder or os.curdir)
            return
        self._make_folder(above)
        with suppress(FileExistsError):  # another process made it meanwhile
            os.mkdir(folder)
        self._folders[folder] = True

    def commit(self) -> None:
        """Give every file its name. If one fails, files placed so far are removed and old files restored.

        Each file appears in one step. A kill between two of them leaves one new and one old, both complete.
        """
        placed: list[str] = []
        kept: dict[str, str | None] = {}  # path -> the old file under a temporary name, None if there was none
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
                with suppress(OSError, KeyError):  # KeyError: the old file could not be kept; the new one is complete
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
        """Remove temporary files."""
        for temporary in self._staged.values():
            temporary.discard()
        if not self.dry:
            self._claimed.difference_update(self._own)
        for folder in reversed([folder for folder, made in self._folders.items() if made]):
            with suppress(OSError):  # another process wrote to it
                os.rmdir(folder)


@contextmanager
def batch(
    *, overwrite: bool = False, dry: bool = False, claimed: set[str] | None = None, repeatable: bool = False
) -> Iterator[Batch]:
    """Several files that appear together when the block succeeds; nothing is left behind when it fails.

    `dry` checks the paths and writes nothing. `claimed` are paths that other batches of the same command have
    written: not even `overwrite` lets two embeddings share one file.

    `repeatable`: the files are made from others that stay, so they are not flushed (as with `cp`): after a power cut
    the command can be repeated. If an old file, which may be the source, is replaced, all files are flushed first.
    """
    files = Batch(overwrite, dry, claimed, repeatable)
    try:
        yield files
        files.commit()
    finally:
        files.discard()


def write_file(path: Path, fill: Fill, *, verify: Verify | None = None, overwrite: bool = False) -> None:
    """One file: written to a temporary file, flushed, checked by `verify`, then renamed."""
    with batch(overwrite=overwrite) as files:
        files.add(path, fill, verify)


def already_exists(path: Path | str, just_now: bool = False) -> ConvertError:
    """The error for a file that would be overwritten."""
    if just_now:
        return ConvertError(
            f"{path}: two embeddings of this command would be written to this file; rename one (--name)"
        )
    return ConvertError(f"{path}: already exists; choose another name or pass --overwrite")


def _place(temporary: Temporary, path: str, overwrite: bool) -> None:
    if overwrite:
        replace(temporary.with_a_name(path), path)
        return
    for _ in range(1 if temporary.named else 2):
        try:
            temporary.link(path)
            return
        except FileExistsError:
            raise already_exists(path) from None
        except OSError:  # no hard links (exFAT), or none for files without a name
            temporary.with_a_name(path)
    _claim(temporary.path, path)


def _claim(temporary: str, path: str) -> None:
    """Without hard links: create the file exclusively, then replace it."""
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    except FileExistsError:
        raise already_exists(path) from None
    try:
        replace(temporary, path)
    except OSError:
        os.unlink(path)
        raise


def _keep(path: str, kept: dict[str, str | None], overwrite: bool) -> None:
    """A second name for a file that is about to be replaced; none where there are no hard links."""
    aside = temporary_name(os.path.dirname(path)) if overwrite and os.path.lexists(path) else None
    with suppress(OSError, AttributeError, NotImplementedError):
        if aside is not None:
            if os.link in os.supports_follow_symlinks:
                os.link(path, aside, follow_symlinks=False)
            else:  # Windows links the symbolic link itself
                os.link(path, aside)
        kept[path] = aside
