"""The bytes of a safetensors file: order of tensors, header, hashes of the data, copying in long runs."""

from __future__ import annotations

import errno
import os
from collections.abc import Container, Iterator, Mapping
from json.encoder import encode_basestring
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from .errors import ConvertError
from .file_range import CHUNK, FileRange, LazyBytes, read_exactly
from .tensor import DTYPE_BITS, RawTensor

# Metadata with the SHA-256 of the bytes after the header, and the prefix before its hexadecimal digits:
# kohya's and A1111's identity of a LoRA, and the ModelSpec field.
HASHES = {"sshs_model_hash": "", "modelspec.hash_sha256": "0x"}
LEGACY_HASH = "sshs_legacy_hash"  # eight digits over the bytes from 1 MiB on, of the file kohya holds in memory
LEGACY_START, LEGACY_END = 0x100000, 0x110000

_RANK = {dtype: rank for rank, dtype in enumerate(DTYPE_BITS)}


def in_file_order(tensors: Mapping[str, RawTensor]) -> dict[str, RawTensor]:
    """Tensors in the order of safetensors' own writer: wide dtypes first, then by name."""
    names = sorted(sorted(tensors), key=lambda name: _RANK[tensors[name].dtype])
    return {name: tensors[name] for name in names}


def described(tensors: Mapping[str, RawTensor], metadata: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """The parsed header: metadata sorted by key, then the tensors in the order of their data."""
    found: dict[str, dict[str, Any]] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    at = 0
    for name, tensor in tensors.items():
        end = at + len(tensor.stored)
        found[name] = {"dtype": tensor.dtype, "shape": [*tensor.shape], "data_offsets": [at, end]}
        at = end
    return found


def header(tensors: Mapping[str, RawTensor], metadata: Mapping[str, str]) -> bytes:
    """Length and JSON of what is `described`, padded with spaces so that the data starts at a multiple of 8.

    Joined from strings, which takes a third of the time of the json module.
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
    """The header as written; for a small file built in memory also all its bytes and its parsed header (`says`)."""

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
    """Write a file and compare its data with what is read back, except for the header, tensors copied `unseen`, and
    small files returned as `whole`. Raises ConvertError (about `path`) if the data differs.

    Hashes named in `metadata` are computed meanwhile and written at the end.
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
    """Write data that is not compared; it is read only if hashes need it."""
    if hashes is None and isinstance(part, FileRange) and part.cached is None:
        copy(file, part)
        return
    for piece in pieces(part):
        file.write(piece)
        if hashes is not None:
            hashes.update(piece)


class _Hashes:
    """SHA-256 of the data, and of the bytes between LEGACY_START and LEGACY_END of a file that starts with `start`."""

    def __init__(self, start: bytes) -> None:
        from hashlib import sha256  # takes its time to load

        self._data, self._window, self._at = sha256(), sha256(), 0
        self._look(start)

    def update(self, data: bytes | memoryview) -> None:
        """Add the next bytes."""
        self._data.update(data)
        self._look(data)

    def found(self, stated: Container[str]) -> dict[str, str]:
        """The fields of `stated` with their computed values."""
        fields = {key: start + self._data.hexdigest() for key, start in HASHES.items()}
        fields[LEGACY_HASH] = self._window.hexdigest()[:8]
        return {key: value for key, value in fields.items() if key in stated}

    def _look(self, data: bytes | memoryview) -> None:
        low, high = max(LEGACY_START - self._at, 0), max(LEGACY_END - self._at, 0)
        self._window.update(memoryview(data)[low:high])
        self._at += len(data)


Stored = bytes | memoryview | FileRange | LazyBytes


class Run(NamedTuple):
    """Data of one or more adjacent tensors: the name of the first, the bytes, and whether they are copied unseen."""

    name: str
    stored: Stored
    unseen: bool


def runs(tensors: Mapping[str, RawTensor], unseen: Container[str] = ()) -> Iterator[Run]:
    """The data in order; adjacent ranges of one file are one run, separate for those copied `unseen`."""
    run: FileRange | None = None
    first, kind = "", False
    for name, tensor in tensors.items():
        stored, own = tensor.stored, name in unseen
        if type(stored) is FileRange and stored.cached is None:
            if run and run.origin is stored.origin and run.offset + run.length == stored.offset and kind == own:
                run.length += stored.length
                continue
            if run:
                yield Run(first, run, kind)
            run, first, kind = FileRange(stored.origin, stored.offset, stored.length), name, own
            continue
        if run:
            yield Run(first, run, kind)
            run = None
        yield Run(name, stored, own)
    if run:
        yield Run(first, run, kind)


def pieces(stored: Stored) -> Iterator[bytes | memoryview]:
    """The bytes, those of a file in pieces of CHUNK."""
    if isinstance(stored, LazyBytes):
        yield stored.read()
    elif not isinstance(stored, FileRange):
        yield stored
    elif stored.cached is not None or stored.length <= CHUNK:
        yield stored.read()
    else:
        with stored.origin.opened() as descriptor:
            for at in range(0, stored.length, CHUNK):
                yield read_exactly(descriptor, stored.offset + at, min(CHUNK, stored.length - at), stored.origin.path)


def copy(file: BinaryIO, part: FileRange) -> None:
    """Copy bytes with the system call for that, and the remainder, if any, by reading and writing."""
    done = 0
    if part.length >= SMALLEST:
        with part.origin.opened() as descriptor:
            done = copied(file, descriptor, part.offset, part.length)
    if done < part.length:
        for piece in pieces(FileRange(part.origin, part.offset + done, part.length - done)):
            file.write(piece)


def in_memory(tensors: Mapping[str, RawTensor], most: int) -> list[bytes | memoryview] | None:
    """The data of each tensor if all of it is in memory and at most `most` bytes; else None."""
    found: list[bytes | memoryview] = []
    for tensor in tensors.values():
        stored = tensor.stored
        data = stored.cached if type(stored) is FileRange else None if type(stored) is LazyBytes else stored
        if data is None:
            return None
        found.append(data)  # type: ignore[arg-type]
        most -= len(data)
    return found if most >= 0 else None


class ReadBack:
    """Writes to a file in large parts and compares each with the bytes read back."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self._file, self._path = file, path
        self._waiting: list[tuple[str, bytes | memoryview]] = []
        self._size = 0

    def write(self, name: str, data: bytes | memoryview) -> None:
        """Bytes of the tensor `name`. Raises ConvertError if these or earlier bytes are read back differently."""
        self._waiting.append((name, data))
        self._size += len(data)
        if self._size >= CHUNK:
            self.flush()

    def flush(self) -> None:
        """Write pending data. Raises ConvertError as `write` does."""
        if not self._waiting:
            return
        at = self._file.tell()
        if self._size < 2 * CHUNK:
            self._file.write(b"".join([data for _, data in self._waiting]))
        else:
            for _, data in self._waiting:
                self._file.write(data)
        self._file.flush()
        descriptor = self._file.fileno()
        for name, data in self._waiting:
            for begin in range(0, len(data), CHUNK):
                part = bytes(data[begin : begin + CHUNK])
                if read_exactly(descriptor, at + begin, len(part), self._path) != part:
                    raise ConvertError(f"{self._path}: {name[:80]!r} on the disk differs from what was written")
            at += len(data)
        self._waiting.clear()
        self._size = 0


SMALLEST = 1 << 20  # bytes; less is copied as fast without it
AT_ONCE = 1 << 26  # bytes a call, so that an interrupt is not delayed
_CANNOT = (errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY, errno.ENOSYS, errno.EPERM, errno.ETXTBSY)


def copied(target: BinaryIO, source: int, offset: int, length: int) -> int:
    """Copy `length` bytes of descriptor `source` from `offset` to the position of `target`, by the system.

    Returns how many were copied: fewer than `length` if the source is shorter or the system does not support it.
    Raises OSError, as for a full disk.
    """
    if not hasattr(os, "copy_file_range"):  # Windows, macOS
        return 0
    target.flush()
    begin, done = target.tell(), 0
    while done < length:
        try:
            count = os.copy_file_range(
                source, target.fileno(), min(length - done, AT_ONCE), offset + done, begin + done
            )
        except OSError as error:
            if error.errno not in _CANNOT:
                raise
            break
        if not count:
            break
        done += count
    target.seek(begin + done)
    return done
