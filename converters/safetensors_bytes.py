"""The bytes of a safetensors file: order of tensors, header, hashes of the data, copying in long runs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from hashlib import sha256
from typing import BinaryIO

from .file_range import CHUNK, FileRange, read_exactly
from .tensor import DTYPE_BITS, RawTensor

# Metadata that states the SHA-256 of the bytes after the header, and what stands before its hexadecimal digits:
# kohya's and A1111's identity of a LoRA, and the ModelSpec field.
HASHES = {"sshs_model_hash": "", "modelspec.hash_sha256": "0x"}
LEGACY_HASH = "sshs_legacy_hash"  # eight digits over the bytes from 1 MiB on, of the file kohya holds in memory
LEGACY_START, LEGACY_END = 0x100000, 0x110000

_RANK = {dtype: rank for rank, dtype in enumerate(DTYPE_BITS)}


def in_file_order(tensors: Mapping[str, RawTensor]) -> dict[str, RawTensor]:
    """Tensors in the order of safetensors' own writer: wide data types first, then by name."""
    return dict(sorted(tensors.items(), key=lambda item: (_RANK[item[1].dtype], item[0])))


def header(tensors: Mapping[str, RawTensor], metadata: Mapping[str, str]) -> bytes:
    """Length and JSON header, metadata sorted by key, padded with spaces so that the data starts at a multiple of 8."""
    described: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    at = 0
    for name, tensor in tensors.items():
        end = at + len(tensor.stored)
        described[name] = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": (at, end)}
        at = end
    text = json.dumps(described, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def fill(file: BinaryIO, tensors: Mapping[str, RawTensor], metadata: Mapping[str, str]) -> bytes:
    """Write a whole file and give its header.

    Hashes that `metadata` states are computed on the way and put in place at the end.
    """
    stated = {key: start + "0" * 64 for key, start in HASHES.items() if key in metadata}
    if LEGACY_HASH in metadata:
        stated[LEGACY_HASH] = "0" * 8
    written = {**metadata, **stated}
    head = header(tensors, written)
    file.write(head)
    if not stated:
        for chunk in chunks(tensors):
            file.write(chunk)
        return head
    digest, legacy = sha256(), _Window(header(tensors, {k: v for k, v in metadata.items() if k.startswith("ss_")}))
    for chunk in chunks(tensors):
        file.write(chunk)
        digest.update(chunk)
        legacy.update(chunk)
    found = {key: HASHES[key] + digest.hexdigest() for key in stated if key in HASHES}
    if LEGACY_HASH in stated:
        found[LEGACY_HASH] = legacy.digest.hexdigest()[:8]
    head = header(tensors, {**written, **found})
    file.seek(0)
    file.write(head)
    return head


def chunks(tensors: Mapping[str, RawTensor]) -> Iterator[bytes | memoryview]:
    """The data in order, at most 1 MiB at a time where it comes from a file; neighbours there are read in one run."""
    run: FileRange | None = None
    for tensor in tensors.values():
        stored = tensor.stored
        if isinstance(stored, FileRange):
            if run and run.origin is stored.origin and run.offset + run.length == stored.offset:
                run = FileRange(run.origin, run.offset, run.length + stored.length)
                continue
            if run:
                yield from _pieces(run)
            run = stored
            continue
        if run:
            yield from _pieces(run)
            run = None
        yield tensor.data
    if run:
        yield from _pieces(run)


def _pieces(run: FileRange) -> Iterator[bytes]:
    with run.origin.opened() as descriptor:
        for at in range(0, run.length, CHUNK):
            yield read_exactly(descriptor, run.offset + at, min(CHUNK, run.length - at), run.origin.path)


class _Window:
    """A hash of the bytes between LEGACY_START and LEGACY_END of a stream that begins with `start`."""

    def __init__(self, start: bytes) -> None:
        self.digest = sha256()
        self._at = 0
        self.update(start)

    def update(self, data: bytes | memoryview) -> None:
        low, high = max(LEGACY_START - self._at, 0), max(LEGACY_END - self._at, 0)
        self.digest.update(memoryview(data)[low:high])
        self._at += len(data)
