"""A single tensor as the root value: what diffusers takes with `token=`."""

from __future__ import annotations

from ..embedding import Contents, Embedding
from ..errors import ConvertError
from ..slots import as_rows, slots
from ..stored import Stored


def detect(file: Stored) -> bool:
    """The outermost value is a tensor."""
    return file.root == "tensor" and file.tensors.keys() == {""}


def read(file: Stored) -> Contents:
    """One embedding, named after the file."""
    tensor = file.tensors[""]
    if not 1 <= len(tensor.shape) <= 2:
        raise ConvertError(f"{file.path}: a tensor of shape {tensor.shape}, not (vectors, width)")
    return Contents((Embedding(file.stem, slots({"*": as_rows(tensor)})),), {}, dict(file.metadata))
