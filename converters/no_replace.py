"""Giving a file a name that must be free, in one step of the system, where there are no hard links (exFAT, FAT)."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from functools import cache

_AT_FDCWD = -100  # Linux
_CALLS = {"linux": ("renameat2", 1), "darwin": ("renamex_np", 4)}  # RENAME_NOREPLACE, RENAME_EXCL


@cache
def _function(name: str) -> Callable[..., int] | None:
    import ctypes

    try:
        return getattr(ctypes.CDLL(None, use_errno=True), name)
    except (AttributeError, OSError):
        return None


def rename_if_free(old: str, new: str) -> None:
    """Rename `old`. Raises FileExistsError if `new` is there, another OSError if this system cannot promise that."""
    if os.name == "nt":
        os.rename(old, new)  # never replaces on Windows
        return
    import ctypes

    name, flag = _CALLS.get(sys.platform, ("", 0))
    function = _function(name)
    if function is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    source, target = os.fsencode(old), os.fsencode(new)
    here = ctypes.c_int(_AT_FDCWD)
    done = (
        function(here, source, here, target, ctypes.c_uint(flag))
        if name == "renameat2"
        else function(source, target, ctypes.c_uint(flag))
    )
    if done:
        why = ctypes.get_errno()
        raise OSError(why, os.strerror(why), new)
