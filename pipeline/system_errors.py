"""Errors of the operating system (disk, permissions, memory, missing files) as one line with a fix."""

from __future__ import annotations

import errno
import os

import torch
from safetensors import SafetensorError

FULL_MEMORY = "out of memory (RAM); close other programs, or set model.dtype = 'bfloat16'"
WINDOWS_PATH = 248  # characters of a path, from which Windows may refuse it
_FIXES = {
    errno.ENOSPC: "the disk is full; free some space",
    errno.EDQUOT: "the disk quota is exceeded; free some space",
    errno.EFBIG: "the file is larger than this file system or a limit allows; choose another --out",
    errno.EROFS: "the file system has become read-only; make it writable",
    errno.EACCES: "permission denied; change the permissions",
    errno.EPERM: "permission denied; change the permissions",
    errno.EIO: "the disk reported an input/output error; check the disk",
    errno.EMFILE: "too many files are open; raise the limit (ulimit -n)",
    errno.ENFILE: "too many files are open on this machine; close other programs",
    errno.ENOENT: "the file no longer exists; restore it",
    errno.ESTALE: "the network disk lost the file; mount it again",
}


def system_error_text(error: OSError | MemoryError) -> str:
    """The path, what is wrong and how to fix it."""
    if isinstance(error, MemoryError) or error.errno == errno.ENOMEM:
        return FULL_MEMORY
    place = f"{error.filename}: " if error.filename else ""
    if os.name == "nt" and len(str(error.filename or "")) >= WINDOWS_PATH and not isinstance(error, FileExistsError):
        return f"{place}the path is longer than Windows allows; choose a shorter --out, or enable long paths in Windows"
    known = _FIXES.get(error.errno or 0)
    cause = error.strerror or str(error) or type(error).__name__
    return f"{place}{known} ({cause})" if known else f"{place}{cause}"


FULL_DEVICE = "out of device memory; set model.dtype = 'bfloat16', or device = 'cpu'"
# Messages of a full memory without an exception class: PyTorch on the CPU and on MPS, pthreads, and oneDNN, whose
# convolutions do not name the cause.
_NO_MEMORY = ("can't allocate memory", "not enough memory", "out of memory", "cannot allocate memory",
              "can't start new thread", "unable to mmap",
              "could not create a primitive", "could not create a memory")  # fmt: skip


def out_of_memory(error: BaseException) -> str | None:
    """A message if the error means that the memory of the device or of the machine is full, else None."""
    if isinstance(error, torch.OutOfMemoryError):
        return FULL_DEVICE
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return FULL_MEMORY
    if isinstance(error, (RuntimeError, SafetensorError)):
        text = str(error).lower()
        if any(part in text for part in _NO_MEMORY):
            return FULL_DEVICE if "mps" in text or "cuda" in text or "xpu" in text else FULL_MEMORY
    return None
