"""AUTOMATIC1111's own `.pt`, for programs from before safetensors: torch's zip format, written without torch."""

from __future__ import annotations

import pickle
from io import BytesIO
from pathlib import Path
from typing import BinaryIO
from zipfile import ZipFile, ZipInfo

from .atomic import Batch
from .embedding import Embedding
from .errors import ConvertError
from .read import read
from .slots import outputs
from .tensor import RawTensor, same

# A class of torch for each type that torch of any age has.
_STORAGES = {"F32": "FloatStorage", "F16": "HalfStorage", "BF16": "BFloat16Storage", "F64": "DoubleStorage"}
_MARK, _TUPLE, _CALL, _STORED, _NO = b"(", b"t", b"R", b"Q", b"\x89"  # opcodes of protocol 2
_ORDERED = b"ccollections\nOrderedDict\n)R"


def add_pt(files: Batch, path: Path, embedding: Embedding) -> None:
    """Write one embedding of one text encoder, and read it back.

    The members of the file are those that A1111's check of pickles knows; what current torch adds, it refuses. Raises
    ConvertError for vectors of several encoders, of output, or of a type that old programs do not have.
    """
    vectors = embedding.vectors
    if len(vectors) != 1 or outputs(vectors):
        raise ConvertError(f"{embedding.name}: a .pt of A1111 has room for one text encoder; use --for a1111")
    (tensor,) = vectors.values()
    if tensor.dtype not in _STORAGES:
        raise ConvertError(f"{embedding.name}: a .pt of A1111 cannot hold {tensor.dtype}; use --for a1111")
    content = _zipped(_pickled(embedding.name, tensor), bytes(tensor.data))

    def fill(file: BinaryIO) -> None:
        file.write(content)

    def verify(temporary: str) -> None:
        (found,) = read(temporary).embeddings
        if found.vectors.keys() != vectors.keys():
            raise ConvertError(
                f"{embedding.name}: a .pt of A1111 does not say which text encoder it is for, and vectors for "
                f"{next(iter(vectors))} would be taken for another's; use --for"
            )
        if not same(found.vectors[next(iter(vectors))], tensor):
            raise ConvertError(f"{path}: what was written is not what is on the disk")

    files.add(path, fill, verify)


def _zipped(value: bytes, data: bytes) -> bytes:
    """Members as torch calls them, packed by nothing and dated by nothing: the same embedding gives the same bytes."""
    made = BytesIO()
    with ZipFile(made, "w") as file:
        for name, content in (("data.pkl", value), ("byteorder", b"little"), ("data/0", data), ("version", b"3\n")):
            file.writestr(ZipInfo(f"archive/{name}"), content)
    return made.getvalue()


def _pickled(name: str, tensor: RawTensor) -> bytes:
    """What A1111 saves: the vectors under `*`, the number of that token, and facts that no program needs."""
    facts = {"name": name, "step": 0, "sd_checkpoint": None, "sd_checkpoint_name": None}
    parts = [_value("string_to_token"), _value({"*": 265}), _value("string_to_param")]
    parts += [b"}", _value("*"), _rebuilt(tensor), b"s"]
    parts += [_value(part) for item in facts.items() for part in item]
    return b"\x80\x02}" + _MARK + b"".join(parts) + b"u."


def _rebuilt(tensor: RawTensor) -> bytes:
    count, width = tensor.shape
    kind = f"ctorch\n{_STORAGES[tensor.dtype]}\n".encode()
    storage = _MARK + _value("storage") + kind + _value("0") + _value("cpu") + _value(count * width) + _TUPLE + _STORED
    shape = _value(0) + _value((count, width)) + _value((width, 1)) + _NO + _ORDERED
    return b"ctorch._utils\n_rebuild_tensor_v2\n" + _MARK + storage + shape + _TUPLE + _CALL


def _value(value: object) -> bytes:
    """Opcodes of a plain value, without the start and the end of a pickle."""
    return pickle.dumps(value, 2)[2:-1]
