"""Bringing files and folders to the disk, so that they outlast a power cut."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from .errors import ConvertError

NO_FOLDERS = (errno.EINVAL, errno.ENOTSUP, errno.EACCES)  # from systems that sync no folders, or not for us


def failed(path: Path, what: str, error: Exception) -> ConvertError:
    """What the system said, as an error about `path`."""
    return ConvertError(f"{path}: {what} ({getattr(error, 'strerror', None) or error})")


def sync_file(path: Path, temporary: Path) -> None:
    """Bring a temporary file to the disk; ConvertError, about `path`, if the disk will not have it."""
    try:
        descriptor = os.open(temporary, os.O_RDWR | getattr(os, "O_BINARY", 0))
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise failed(path, "cannot be written", error) from error


def sync_folder(folder: Path) -> None:
    """Bring the names in a folder to the disk, where the system does such a thing."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in NO_FOLDERS:
            raise failed(folder, "its new files are written but may not last a power cut", error) from error
