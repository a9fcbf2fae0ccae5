"""A tensor as the bytes of a file: converting is moving bytes, never arithmetic."""

from __future__ import annotations

from math import prod

from .file_range import FileRange, Made

# Bits a value takes, by the names safetensors gives to data types, in the order in which a file keeps them.
DTYPE_BITS: dict[str, int] = {
    "U64": 64, "I64": 64, "F64": 64, "C64": 64,
    "F32": 32, "U32": 32, "I32": 32,
    "BF16": 16, "F16": 16, "U16": 16, "I16": 16,
    "F8_E5M2FNUZ": 8, "F8_E4M3FNUZ": 8, "F8_E8M0": 8, "F8_E4M3": 8, "F8_E5M2": 8, "I8": 8, "U8": 8,
    "F6_E3M2": 6, "F6_E2M3": 6, "F4": 4, "BOOL": 8,
}  # fmt: skip
# Types with a sign, an exponent and a fraction: those that conversions write, and those whose numbers can be told.
FLOATS = ("F32", "F16", "BF16", "F64")
READABLE = (*FLOATS, "F8_E4M3", "F8_E5M2")


class RawTensor:
    """`dtype` as safetensors spells it, `shape`, and the little-endian bytes in C order.

    The bytes may stay in a file, or be made on demand: `data` then has them anew at each access, so a LoRA or model of
    any size costs no memory until somebody looks. Raises ValueError if bytes, dtype and shape do not fit.
    """

    __slots__ = ("dtype", "shape", "stored")

    def __init__(self, dtype: str, shape: tuple[int, ...], data: bytes | memoryview | FileRange | Made) -> None:
        if type(data) is FileRange or type(data) is Made:
            length = data.length
        else:
            if isinstance(data, memoryview) and (data.format != "B" or data.ndim != 1):
                data = data.cast("B")
            length = len(data)
        if length != (DTYPE_BITS[dtype] * prod(shape) + 7) // 8:
            raise ValueError(f"{dtype} {shape} takes {nbytes(dtype, shape)} bytes, not {length}")
        self.dtype = dtype
        self.shape = tuple(shape)
        self.stored = data

    @classmethod
    def of_header(cls, dtype: str, shape: tuple[int, ...], stored: FileRange) -> RawTensor:
        """As the constructor, for what has been checked as a whole: a header of a hundred thousand tensors."""
        made = cls.__new__(cls)
        made.dtype, made.shape, made.stored = dtype, shape, stored
        return made

    @property
    def data(self) -> bytes | memoryview:
        """The bytes, read from the file if they are still there; ConvertError if that file has changed since."""
        stored = self.stored
        return stored.read() if isinstance(stored, (FileRange, Made)) else stored

    def __repr__(self) -> str:
        return f"RawTensor({self.dtype!r}, {self.shape!r})"


def nbytes(dtype: str, shape: tuple[int, ...]) -> int:
    """Bytes a tensor of this data type and shape takes in a safetensors file. Raises KeyError for an unknown type."""
    return (DTYPE_BITS[dtype] * prod(shape) + 7) // 8


def same(a: RawTensor, b: RawTensor) -> bool:
    """Whether two tensors are equal in type, shape and every bit (so two NaN of the same bits are equal)."""
    return a.dtype == b.dtype and a.shape == b.shape and (a.stored is b.stored or bytes(a.data) == bytes(b.data))
