"""Whether an error says that memory is full: libraries say so in many words."""

from __future__ import annotations

import errno

import torch
from safetensors import SafetensorError

from ..machine import FULL_MEMORY

FULL_DEVICE = "the device's memory is full; try model.dtype = 'bfloat16', or device = 'cpu'"
# What allocators and threads say where they have no exception of their own: PyTorch on the CPU, on MPS, pthreads, and
# oneDNN, whose convolutions name no cause: starved at sixty different amounts, this is what it said of a full memory.
_NO_MEMORY = ("can't allocate memory", "not enough memory", "out of memory", "cannot allocate memory",
              "can't start new thread", "unable to mmap",
              "could not create a primitive", "could not create a memory")  # fmt: skip


def out_of_memory(error: BaseException) -> str | None:
    """Whose memory is full, in words, when the error says so: of the accelerator or of the machine itself."""
    if isinstance(error, torch.OutOfMemoryError):
        return FULL_DEVICE
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return FULL_MEMORY
    if isinstance(error, (RuntimeError, SafetensorError)):
        text = str(error).lower()
        if any(part in text for part in _NO_MEMORY):
            return FULL_DEVICE if "mps" in text or "cuda" in text or "xpu" in text else FULL_MEMORY
    return None
