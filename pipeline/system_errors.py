"""What the operating system refuses (disk, rights, memory, missing files) as one line. Needs no torch."""

from __future__ import annotations

import errno
import os

import torch
from safetensors import SafetensorError

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


def system_embeddings(error: OSError | MemoryError) -> str:
    """The file, what is wrong with it and the way out."""
    if isinstance(error, MemoryError) or error.errno == errno.ENOMEM:
        return FULL_MEMORY
    place = f"{error.filename}: " if error.filename else ""
    if os.name == "nt" and len(str(error.filename or "")) >= WINDOWS_PATH and not isinstance(error, FileExistsError):
        return f"{place}the path is longer than Windows allows; choose a shorter --out, or enable long paths in Windows"
    known = _WAYS_OUT.get(error.errno or 0)
    said = error.strerror or str(error) or type(error).__name__
    return f"{place}{known} ({said})" if known else f"{place}{said}"


FULL_DEVICE = "the device's memory is full; try model.dtype = 'bfloat16', or device = 'cpu'"
# What allocators and threads say where they have no exception of their own: PyTorch on the CPU, on MPS, pthreads, and
# oneDNN, whose convolutions name no cause: starved at sixty different amounts, this is what it said of a full memory.
_NO_MEMORY = ("can't allocate memory", "not enough memory", "out of memory", "cannot allocate memory",
              "can't start new thread", "unable to mmap",
              "could not create a primitive", "could not create a memory")  # fmt: skip


def out_of_memory(error: BaseException) -> str | None:
    """Whose memory is full, in embeddings, when the error says so: of the accelerator or of the machine itself."""
    if isinstance(error, torch.OutOfMemoryError):
        return FULL_DEVICE
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return FULL_MEMORY
    if isinstance(error, (RuntimeError, SafetensorError)):
        text = str(error).lower()
        if any(part in text for part in _NO_MEMORY):
            return FULL_DEVICE if "mps" in text or "cuda" in text or "xpu" in text else FULL_MEMORY
    return None
