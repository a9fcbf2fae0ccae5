"""Bringing files and folders to the disk, so that they outlast a power cut."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path

from .errors import ConvertError

NO_FOLDERS = (errno.EINVAL, errno.ENOTSUP, errno.EACCES)  # from systems that sync no folders, or not for us
_WAITS = (0.05, 0.15, 0.3, 0.5, 1.0)  # seconds


def failed(path: Path | str, what: str, error: Exception) -> ConvertError:
    """What the system said, as an error about `path`."""
    return ConvertError(f"{path}: {what} ({getattr(error, 'strerror', None) or error})")


def replace(old: Path | str, new: Path | str) -> None:
    """As os.replace; on Windows again for two seconds while a virus scanner or a viewer has the file open.

    Raises OSError.
    """
    for wait in _WAITS if os.name == "nt" else ():
        try:
            os.replace(old, new)
            return
        except PermissionError:
            time.sleep(wait)
    os.replace(old, new)


def sync_folder(folder: Path | str) -> None:
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
