"""What the operating system refuses (disk, rights, memory, files that are gone), as one line for people. No torch."""

from __future__ import annotations

import errno
import os

FULL_MEMORY = "this machine's memory is full; close other programs, or try model.dtype = 'bfloat16'"
WINDOWS_PATH = 248  # characters of a path, from which Windows may refuse it
_WAYS_OUT = {
    errno.ENOSPC: "the disk is full; make room",
    errno.EDQUOT: "the disk quota is used up; make room",
    errno.EFBIG: "the file is larger than this file system or a limit allows; choose another --out",
    errno.EROFS: "the file system has become read-only; make it writable",
    errno.EACCES: "writing or reading is not allowed; mend the rights",
    errno.EPERM: "writing or reading is not allowed; mend the rights",
    errno.EIO: "the disk has failed to read or write; look after it",
    errno.EMFILE: "too many files are open; raise the limit (ulimit -n)",
    errno.ENFILE: "too many files are open on this machine",
    errno.ENOENT: "it was there before and is gone; put it back",
    errno.ESTALE: "the network disk has lost it; mount it anew",
}


def system_words(error: OSError | MemoryError) -> str:
    """The file, what is wrong with it and the way out."""
    if isinstance(error, MemoryError) or error.errno == errno.ENOMEM:
        return FULL_MEMORY
    place = f"{error.filename}: " if error.filename else ""
    if os.name == "nt" and len(str(error.filename or "")) >= WINDOWS_PATH and not isinstance(error, FileExistsError):
        return f"{place}the path is longer than Windows allows; choose a shorter --out, or enable long paths in Windows"
    known = _WAYS_OUT.get(error.errno or 0)
    said = error.strerror or str(error) or type(error).__name__
    return f"{place}{known} ({said})" if known else f"{place}{said}"
