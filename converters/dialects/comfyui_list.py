"""A pickle whose root is a list of dicts of tensors, which ComfyUI joins into one embedding for each width."""

from __future__ import annotations

from ..embedding import Contents, Embedding
from ..errors import ConvertError
from ..slots import BY_WIDTH, UNNAMED, as_rows
from ..stored import Stored
from ..tensor import RawTensor


def detect(file: Stored) -> bool:
    """A list with tensors that are not a LoRA's."""
    return file.root == "list" and bool(file.tensors) and not file.is_lora


def read(file: Stored) -> Contents:
    """One embedding, named after the file: all tensors of a width concatenated, as in ComfyUI."""
    parts: dict[str, list[RawTensor]] = {}
    for name, tensor in file.tensors.items():
        if not 1 <= len(tensor.shape) <= 2:
            raise ConvertError(f"{file.path}: {name[:40]!r} has the shape {tensor.shape}")
        parts.setdefault(BY_WIDTH.get(tensor.shape[-1], UNNAMED), []).append(as_rows(tensor))
    vectors = {}
    for key, tensors in parts.items():
        if len({(tensor.dtype, tensor.shape[1]) for tensor in tensors}) != 1:
            raise ConvertError(f"{file.path}: its tensors for {key} differ in type or width")
        shape = (sum(tensor.shape[0] for tensor in tensors), tensors[0].shape[1])
        vectors[key] = RawTensor(tensors[0].dtype, shape, b"".join(bytes(tensor.data) for tensor in tensors))
    return Contents((Embedding(file.stem, vectors),), {}, dict(file.metadata))
