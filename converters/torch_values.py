"""What a torch file's value means: tensors by dotted name, and numbers and texts beside them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import product
from math import prod
from typing import Any, Literal

from .errors import ConvertError
from .file_range import FileRange
from .pickle_data import Malformed, Named, PickledObject, Reference
from .stored import Stored, plain_text
from .tensor import DTYPE_BITS, RawTensor
from .torch_file import Storage, TorchFile, storage_key

DTYPES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64", "int32": "I32",
    "int16": "I16", "int8": "I8", "uint8": "U8", "bool": "BOOL", "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2",
    "uint16": "U16", "uint32": "U32", "uint64": "U64",
}  # fmt: skip
ROOM = 1 << 26  # bytes that names, texts and tensors which are not stored row by row may take together
VISIT = 256  # bytes of it for each value, so that there are about 250,000
MAX_DEPTH = 16
MAX_DIMENSIONS = 64
_INTEGERS: dict[int, Literal["B", "H", "I", "Q"]] = {1: "B", 2: "H", 4: "I", 8: "Q"}
PARAMETERS = ("torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state")
DICTS = ("collections.OrderedDict", "torch.nn.modules.container.ParameterDict", "builtins.dict")
# Objects in real files that do not describe the embedding (A1111's list has them too).
IGNORED = (
    "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",
    "pytorch_lightning.callbacks.ModelCheckpoint",
    "builtins.set",
    "__builtin__.set",
    "torch.device",
    "torch.Size",
    "_codecs.encode",
    "numpy.dtype",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
)

CALLS = (
    *PARAMETERS,
    *DICTS,
    *IGNORED,
    "torch._tensor._rebuild_from_type_v2",
    "torch._utils._rebuild_tensor",
    "torch._utils._rebuild_tensor_v2",
    "torch._utils._rebuild_tensor_v3",
)


class Room:
    """Memory budget of one file: values that take more memory than they take in the file are charged to it."""

    def __init__(self, left: int) -> None:
        self.left = left

    def take(self, size: int) -> None:
        self.left -= size
        if self.left < 0:
            raise Malformed("nested more deeply, or more values, than any embedding has")


def flatten(file: TorchFile, stored: Stored) -> Stored:
    """`stored` with the tensors and texts of the file.

    Dicts of any kind give dotted names, a list of dicts gives `0.name`; a lone tensor is called `""`. Raises
    ConvertError for a value that asks for a call no embedding needs (an attack, or another kind of file).
    """
    try:
        for name in file.called:
            if name not in CALLS:
                raise Malformed(f"the file asks to run {name[:80]!r}, which no embedding needs; nothing was run")
        tensors, metadata = dict[str, RawTensor](), dict[str, str]()
        parameters, room = set(), Room(ROOM)
        for name, value in _leaves(file.value, "", 0, room):
            if isinstance(value, PickledObject):
                tensor = _tensor(value, file.storages, room)
                if tensor is None:
                    continue
                if name in tensors:
                    raise Malformed(f"two tensors are called {name[:60]!r}")
                tensors[name] = tensor
                if value.name in PARAMETERS:
                    parameters.add(name)
            elif value is not None:
                metadata[name] = _text(value)
                room.take(len(metadata[name]))
    except (Malformed, TypeError, ValueError, RecursionError) as error:
        raise ConvertError(f"{stored.path}: {error}") from error
    kinds = ((dict, "dict"), (list | tuple, "list"))
    root = next((name for kind, name in kinds if isinstance(file.value, kind)), "tensor")
    if isinstance(file.value, PickledObject) and file.value.name in DICTS:
        root = "ordered"
    return Stored(
        stored.path,
        tensors,
        metadata,
        stored.container,
        root,
        frozenset(parameters),
        frozenset(file.names),
        file.members,
    )


def _text(value: Any) -> str:
    """A number or text as text. Other objects give only the name of their type: a pickle may contain itself."""
    if isinstance(value, Named):
        return value.name
    return plain_text(value) if isinstance(value, str | int | float | bytes) else type(value).__name__


def _leaves(value: Any, name: str, depth: int, room: Room) -> Iterator[tuple[str, Any]]:
    """Names and values below `value`. A pickle may contain itself, or many copies of itself: hence the two limits."""
    room.take(len(name) + VISIT if depth <= MAX_DEPTH else ROOM + 1)
    children = _children(value)
    if children is None:
        yield name, value
        return
    for key, child in children:
        yield from _leaves(child, f"{name}.{key}" if name else str(key), depth + 1, room)


def _children(value: Any) -> Iterable[tuple[Any, Any]] | None:
    """Names and values of a dict or list of any kind; None for anything else."""
    if isinstance(value, PickledObject) and value.name in DICTS:
        inner = value.state.get("_parameters") if isinstance(value.state, dict) else None  # an nn.Module's
        return _children(inner) if isinstance(inner, dict | PickledObject) else value.items.items()
    if isinstance(value, dict):
        return value.items()
    return enumerate(value) if isinstance(value, list | tuple) else None


def _tensor(made: PickledObject, storages: dict[str, Storage], room: Room) -> RawTensor | None:
    """The tensor that a call of torch's asks for, None for an ignored object. Raises Malformed."""
    match made.name, made.args:
        case (name, (PickledObject() as inner, *_)) if name in PARAMETERS:
            return _tensor(inner, storages, room)
        case ("torch._tensor._rebuild_from_type_v2", (Named(function), _, tuple(args), *_)):
            return _tensor(PickledObject(function, args), storages, room)
        case ("torch._utils._rebuild_tensor", (Reference() as reference, int(start), tuple(shape), tuple(stride))):
            return _view(reference, None, start, shape, stride, storages, room)
        case (
            "torch._utils._rebuild_tensor_v2",
            (Reference() as reference, int(start), tuple(shape), tuple(stride), *_),
        ):
            return _view(reference, None, start, shape, stride, storages, room)
        case (
            "torch._utils._rebuild_tensor_v3",
            (Reference() as reference, int(start), tuple(shape), tuple(stride), _, _, Named(dtype), *_),
        ) if dtype.removeprefix("torch.") in DTYPES:
            return _view(reference, DTYPES[dtype.removeprefix("torch.")], start, shape, stride, storages, room)
    if made.name in IGNORED:
        return None
    raise Malformed(f"the file asks for {made.name[:80]!r} with wrong arguments")


def _view(
    reference: Reference, dtype: str | None, start: int, shape: tuple, stride: tuple, storages: dict[str, Storage],
    room: Room,
) -> RawTensor:  # fmt: skip
    key, _ = storage_key(reference)
    if key not in storages:
        raise Malformed(f"its storage {key[:40]!r} is missing")
    storage = storages[key]
    dtype = dtype or storage.dtype
    size = DTYPE_BITS[dtype] // 8
    numbers = (start, *shape, *stride)
    if len(shape) != len(stride) or len(numbers) > 2 * MAX_DIMENSIONS or not all(
        type(n) is int and 0 <= n < 1 << 48 for n in numbers
    ):  # fmt: skip
        raise Malformed("a tensor of impossible shape")
    span = 1 + sum((length - 1) * step for length, step in zip(shape, stride, strict=True))
    if prod(shape) == 0:
        return RawTensor(dtype, shape, b"")
    if (start + span) * size > storage.data.length:
        raise Malformed("a tensor that exceeds its storage")
    rows = [prod(shape[at + 1 :]) for at in range(len(shape))]
    stored = FileRange(storage.data.origin, storage.data.offset + start * size, span * size)
    if all(step == row or length == 1 for length, step, row in zip(shape, stride, rows, strict=True)):
        return RawTensor(dtype, shape, stored)
    sides = [(length, step) for length, step in zip(shape, stride, strict=True) if length > 1]
    room.take(max(span, prod(shape)) * size + prod(shape) // sides[-1][0] * VISIT)
    return RawTensor(dtype, shape, _gathered(stored.read(), size, sides))


def _gathered(data: bytes | memoryview, size: int, sides: list[tuple[int, int]]) -> bytes:
    """Values in C order from a strided view: transposed, or one row repeated."""
    view = memoryview(data).cast(_INTEGERS[size])
    *outer, (length, step) = sides
    parts = []
    for index in product(*(range(count) for count, _ in outer)):
        at = sum(number * stride for number, (_, stride) in zip(index, outer, strict=True))
        last = at + (length - 1) * step + 1
        parts.append(view[at:last:step].tobytes() if step else view[at : at + 1].tobytes() * length)
    return b"".join(parts)
