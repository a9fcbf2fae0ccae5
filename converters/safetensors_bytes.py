"""The bytes of a safetensors file: order of tensors, header, hashes of the data, copying in long runs."""

from __future__ import annotations

from collections.abc import Container, Mapping
from json.encoder import encode_basestring
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from .file_range import CHUNK, FileRange
from .safetensors_runs import ReadBack, Stored, copy, in_memory, pieces, runs
from .tensor import DTYPE_BITS, RawTensor

# Metadata that states the SHA-256 of the bytes after the header, and what stands before its hexadecimal digits:
# kohya's and A1111's identity of a LoRA, and the ModelSpec field.
HASHES = {"sshs_model_hash": "", "modelspec.hash_sha256": "0x"}
LEGACY_HASH = "sshs_legacy_hash"  # eight digits over the bytes from 1 MiB on, of the file kohya holds in memory
LEGACY_START, LEGACY_END = 0x100000, 0x110000

_RANK = {dtype: rank for rank, dtype in enumerate(DTYPE_BITS)}


def in_file_order(tensors: Mapping[str, RawTensor]) -> dict[str, RawTensor]:
    """Tensors in the order of safetensors' own writer: wide data types first, then by name."""
    names = sorted(sorted(tensors), key=lambda name: _RANK[tensors[name].dtype])
    return {name: tensors[name] for name in names}


def described(tensors: Mapping[str, RawTensor], metadata: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """What the header says, as JSON gives it back: metadata sorted by key, then the tensors in order of the data."""
    found: dict[str, dict[str, Any]] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    at = 0
    for name, tensor in tensors.items():
        end = at + len(tensor.stored)
        found[name] = {"dtype": tensor.dtype, "shape": [*tensor.shape], "data_offsets": [at, end]}
        at = end
    return found


def header(tensors: Mapping[str, RawTensor], metadata: Mapping[str, str]) -> bytes:
    """Length and JSON of what is `described`, padded with spaces so that the data starts at a multiple of 8.

    Put together from texts: it takes a third of the time that values and an encoder for them take.
    """
    texts = [f"{encode_basestring(key)}:{encode_basestring(text)}" for key, text in sorted(metadata.items())]
    parts = [f'"__metadata__":{{{",".join(texts)}}}'] if texts else []
    kinds: dict[tuple[str, tuple[int, ...]], str] = {}
    at = 0
    for name, tensor in tensors.items():
        kind = kinds.get((tensor.dtype, tensor.shape))
        if kind is None:
            shape = ",".join(map(str, tensor.shape))
            kind = kinds[tensor.dtype, tensor.shape] = f'{{"dtype":"{tensor.dtype}","shape":[{shape}],"data_offsets":['
        end = at + len(tensor.stored)
        parts.append(f"{encode_basestring(name)}:{kind}{at},{end}]}}")
        at = end
    text = f"{{{','.join(parts)}}}".encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


class Filled(NamedTuple):
    """The header as it was written, and of a small file that was made in memory all its bytes and what it `says`."""

    head: bytes
    whole: bytes | None = None
    says: dict[str, dict[str, Any]] | None = None


def fill(
    file: BinaryIO,
    tensors: Mapping[str, RawTensor],
    metadata: Mapping[str, str],
    unseen: Container[str] = (),
    path: Path = Path(),
) -> Filled:
    """Write a whole file; its data is read back and compared on the way, but for the header, tensors copied `unseen`,
    and a file that is given back whole. Raises ConvertError (about `path`) if it gives back other bytes.

    Hashes that `metadata` states are computed on the way and put in place at the end.
    """
    stated = {key: start + "0" * 64 for key, start in HASHES.items() if key in metadata}
    if LEGACY_HASH in metadata:
        stated[LEGACY_HASH] = "0" * 8
    written = {**metadata, **stated}
    head = header(tensors, written)
    if not stated and (data := in_memory(tensors, CHUNK)) is not None:
        whole = b"".join((head, *data))
        file.write(whole)
        return Filled(head, whole, described(tensors, written))
    hashes = _Hashes(header(tensors, _of_kohya(metadata))) if stated else None
    file.write(head)
    read_back = ReadBack(file, path)
    for run in runs(tensors, unseen):
        if not run.unseen:
            for piece in pieces(run.stored):
                read_back.write(run.name, piece)
                if hashes is not None:
                    hashes.update(piece)
            continue
        read_back.flush()
        _put(file, run.stored, hashes)
    read_back.flush()
    if hashes is not None:
        head = header(tensors, {**written, **hashes.found(stated)})
        file.seek(0)
        file.write(head)
    return Filled(head)


def _of_kohya(metadata: Mapping[str, str]) -> dict[str, str]:
    return {key: value for key, value in metadata.items() if key.startswith("ss_")}


def _put(file: BinaryIO, part: Stored, hashes: _Hashes | None) -> None:
    """Write a part that is copied unseen; only hashes have to see it."""
    if hashes is None and isinstance(part, FileRange) and part.held is None:
        copy(file, part)
        return
    for piece in pieces(part):
        file.write(piece)
        if hashes is not None:
            hashes.update(piece)


class _Hashes:
    """SHA-256 of the data, and of the bytes between LEGACY_START and LEGACY_END of a file that begins with `start`."""

    def __init__(self, start: bytes) -> None:
        from hashlib import sha256  # takes its time to load

        self._data, self._window, self._at = sha256(), sha256(), 0
        self._look(start)

    def update(self, data: bytes | memoryview) -> None:
        """What comes next."""
        self._data.update(data)
        self._look(data)

    def found(self, stated: Container[str]) -> dict[str, str]:
        """The metadata fields of `stated`, true."""
        fields = {key: start + self._data.hexdigest() for key, start in HASHES.items()}
        fields[LEGACY_HASH] = self._window.hexdigest()[:8]
        return {key: value for key, value in fields.items() if key in stated}

    def _look(self, data: bytes | memoryview) -> None:
        low, high = max(LEGACY_START - self._at, 0), max(LEGACY_END - self._at, 0)
        self._window.update(memoryview(data)[low:high])
        self._at += len(data)
