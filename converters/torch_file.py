"""Files of `torch.save`, new (zip) and old (stream), without torch: a pickle, and bytes of storages beside it."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import ConvertError
from .file_range import FileRange, Origin, opened, read_exactly
from .pickle_data import Malformed, Named, Reference, load
from .tensor import DTYPE_BITS

MAX_PICKLE = 64 << 20  # the part that is no storage
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
STORAGES = {
    "DoubleStorage": "F64", "FloatStorage": "F32", "HalfStorage": "F16", "BFloat16Storage": "BF16",
    "LongStorage": "I64", "IntStorage": "I32", "ShortStorage": "I16", "CharStorage": "I8", "ByteStorage": "U8",
    "BoolStorage": "BOOL", "ComplexFloatStorage": "C64", "UntypedStorage": "U8",
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Storage:
    """The bytes of one storage, in the file, and the type it was saved with."""

    dtype: str
    data: FileRange


@dataclass(frozen=True, eq=False)
class TorchFile:
    """The outermost value, its storages by key, names the pickle uses and those it wants called, members of its zip."""

    value: Any
    storages: dict[str, Storage]
    names: tuple[str, ...]
    called: tuple[str, ...]
    members: tuple[str, ...] = ()


def read(path: Path) -> TorchFile:
    """Raises ConvertError for a file that is not torch's, is compressed (torch never does that), or has wrong sizes."""
    with opened(path) as (descriptor, origin):
        head = read_exactly(descriptor, 0, min(origin.size, MAX_PICKLE), path)
        try:
            return _zip(origin) if head[:2] == b"PK" else _stream(head, origin)
        except Malformed as error:
            raise ConvertError(f"{path}: {error}") from error


def storage_key(reference: Reference) -> tuple[str, str]:
    """Key and dtype of a persistent id `("storage", type, key, device, count)`. Raises Malformed for another."""
    match reference.key:
        case ("storage", Named(name), str(key), *_) if name.rpartition(".")[2] in STORAGES:
            return key, STORAGES[name.rpartition(".")[2]]
    raise Malformed("a pickle with a reference that is not a storage of torch")


def _zip(origin: Origin) -> TorchFile:
    path = origin.path
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, OSError, ValueError) as error:
        raise ConvertError(f"{path}: a truncated or corrupt zip file ({error}); download it again") from error
    names = tuple(member.filename for member in members)
    pickles = [name for name in names if name.rpartition("/")[2] == "data.pkl" and name.count("/") <= 1]
    if len(pickles) != 1 or len(set(names)) != len(names):
        raise ConvertError(f"{path}: a zip archive, not a file of torch; unpack it first")
    with origin.opened() as descriptor:
        ranges = {member.filename: _stored(member, origin, descriptor) for member in members}
    folder = pickles[0].removesuffix("data.pkl")
    order = ranges.get(f"{folder}byteorder")
    if order is not None and order.length < 16 and order.read() == b"big":
        raise _big_endian(path)
    if ranges[pickles[0]].length > MAX_PICKLE:
        raise ConvertError(f"{path}: its pickle is larger than that of any embedding")
    loaded = load(ranges[pickles[0]].read())
    storages = {}
    for key, dtype in map(storage_key, loaded.references):
        if f"{folder}data/{key}" not in ranges:
            raise ConvertError(f"{path}: its storage {key[:40]!r} is missing")
        storages[key] = Storage(dtype, ranges[f"{folder}data/{key}"])
    return TorchFile(loaded.value, storages, tuple(loaded.names), tuple(loaded.called), names)


def _stored(member: zipfile.ZipInfo, origin: Origin, descriptor: int) -> FileRange:
    """Where the bytes of a member lie: after its own header, whose two lengths may differ from the directory's."""
    if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1:
        raise ConvertError(
            f"{origin.path}: {member.filename[:60]!r} in it is compressed, so this is not a file of torch; unpack it"
        )
    head = read_exactly(descriptor, member.header_offset, 30, origin.path)
    at = member.header_offset + 30 + int.from_bytes(head[26:28], "little") + int.from_bytes(head[28:30], "little")
    if head[:4] != b"PK\x03\x04" or at + member.file_size > origin.size:
        raise ConvertError(f"{origin.path}: a truncated or corrupt zip file; download it again")
    return FileRange(origin, at, member.file_size)


def _stream(head: bytes, origin: Origin) -> TorchFile:
    """Before torch 1.6: pickles of magic number, version, system, value and keys of storages; then the storages."""
    loaded = load(head)
    if loaded.value != LEGACY_MAGIC:
        return TorchFile(loaded.value, {}, tuple(loaded.names), tuple(loaded.called))
    version = load(head, loaded.end)
    system = load(head, version.end)
    if not isinstance(system.value, dict) or system.value.get("little_endian") is not True:
        raise _big_endian(origin.path)
    loaded = load(head, system.end)
    keys = load(head, loaded.end)
    dtypes = dict(map(storage_key, loaded.references))
    texts = isinstance(keys.value, list) and all(isinstance(key, str) for key in keys.value)
    if not texts or sorted(keys.value) != sorted(dtypes):
        raise ConvertError(f"{origin.path}: its list of storages does not fit its tensors")
    storages, at = {}, keys.end
    for key in keys.value:
        count = int.from_bytes(FileRange(origin, at, 8).read(), "little")
        data = FileRange(origin, at + 8, count * DTYPE_BITS[dtypes[key]] // 8)
        at = data.offset + data.length
        if at > origin.size:
            raise ConvertError(f"{origin.path}: truncated (it ends inside a tensor); download it again")
        storages[key] = Storage(dtypes[key], data)
    return TorchFile(loaded.value, storages, tuple(loaded.names), tuple(loaded.called))


def _big_endian(path: Path | str) -> ConvertError:
    return ConvertError(f"{path}: written on a big-endian machine; load it there and save it as .safetensors")
