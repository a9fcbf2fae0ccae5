"""A tensor as the bytes of a file (converting moves bytes), and whether its values are usable."""

from __future__ import annotations

from functools import cache
from math import prod
from struct import iter_unpack

from .errors import count_of
from .file_range import FileRange, LazyBytes

# Bits a value takes, by the dtype names of safetensors, in the order in which a file keeps them.
DTYPE_BITS: dict[str, int] = {
    "U64": 64, "I64": 64, "F64": 64, "C64": 64,
    "F32": 32, "U32": 32, "I32": 32,
    "BF16": 16, "F16": 16, "U16": 16, "I16": 16,
    "F8_E5M2FNUZ": 8, "F8_E4M3FNUZ": 8, "F8_E8M0": 8, "F8_E4M3": 8, "F8_E5M2": 8, "I8": 8, "U8": 8,
    "F6_E3M2": 6, "F6_E2M3": 6, "F4": 4, "BOOL": 8,
}  # fmt: skip
# Floating-point types that conversions write, and those whose values can be read.
FLOATS = ("F32", "F16", "BF16", "F64")
READABLE = (*FLOATS, "F8_E4M3", "F8_E5M2")
INTEGERS = ("I64", "I32", "I16", "I8", "U8")


class RawTensor:
    """`dtype` as safetensors spells it, `shape`, and the little-endian bytes in C order.

    The bytes may stay in a file or be computed on demand: `data` then reads them at each access, so a LoRA or model of
    any size uses no memory until it is read. Raises ValueError if bytes, dtype and shape do not fit.
    """

    __slots__ = ("dtype", "shape", "stored")

    def __init__(self, dtype: str, shape: tuple[int, ...], data: bytes | memoryview | FileRange | LazyBytes) -> None:
        if type(data) is FileRange or type(data) is LazyBytes:
            length = data.length
        else:
            if isinstance(data, memoryview) and (data.format != "B" or data.ndim != 1):
                data = data.cast("B")
            length = len(data)
        if length != (DTYPE_BITS[dtype] * prod(shape) + 7) // 8:
            raise ValueError(f"{dtype} {shape} takes {count_of(nbytes(dtype, shape), 'byte')}, not {length}")
        self.dtype = dtype
        self.shape = tuple(shape)
        self.stored = data

    @classmethod
    def of_header(cls, dtype: str, shape: tuple[int, ...], stored: FileRange) -> RawTensor:
        """As the constructor, without checks: for headers that were checked as a whole."""
        made = cls.__new__(cls)
        made.dtype, made.shape, made.stored = dtype, shape, stored
        return made

    @property
    def data(self) -> bytes | memoryview:
        """The bytes, read from the file if they are still there; ConvertError if that file has changed since."""
        stored = self.stored
        return stored.read() if isinstance(stored, (FileRange, LazyBytes)) else stored

    def __repr__(self) -> str:
        return f"RawTensor({self.dtype!r}, {self.shape!r})"


def nbytes(dtype: str, shape: tuple[int, ...]) -> int:
    """Bytes a tensor of this dtype and shape takes in a safetensors file. Raises KeyError for an unknown type."""
    return (DTYPE_BITS[dtype] * prod(shape) + 7) // 8


def same(a: RawTensor, b: RawTensor) -> bool:
    """Whether two tensors are equal in type, shape and every bit (so two NaN of the same bits are equal)."""
    return a.dtype == b.dtype and a.shape == b.shape and (a.stored is b.stored or bytes(a.data) == bytes(b.data))


def is_token_ids(tensor: RawTensor) -> bool:
    """Whether it holds token ids, one in each row, and no vectors."""
    return tensor.dtype in INTEGERS and len(tensor.shape) == 2 and tensor.shape[1] == 1


LARGEST = (2 - 2**-23) * 2.0**127  # of F32
# Bytes of a value, place and length of its exponent, which is all ones in NaN and infinity.
EXPONENTS = {"F32": (4, 23, 8), "BF16": (2, 7, 8), "F16": (2, 10, 5), "F8_E5M2": (1, 2, 5)}
NANS = {"F8_E4M3": (b"\x7f", b"\xff")}  # of types with an exponent of ones that is none of these


def is_finite(tensor: RawTensor) -> bool:
    """No NaN, no infinity and nothing that becomes one in F32, in which or below which all programs compute; types that
    are neither in EXPONENTS nor in NANS count as finite.

    A value that is none has an exponent of ones; if no value's first byte may be that of one, all are finite. Else
    all are looked at as one long number: adding one to each exponent carries where it is all ones.
    """
    return are_finite(tensor.dtype, tensor.data)


def are_finite(dtype: str, stored: bytes | memoryview) -> bool:
    """As `is_finite`, for bytes in memory."""
    if dtype in NANS:
        return not any(nan in bytes(stored) for nan in NANS[dtype])
    if dtype == "F64":
        return all(abs(number) <= LARGEST for (number,) in iter_unpack("<d", stored))
    if dtype not in EXPONENTS:
        return True
    size, shift, bits = EXPONENTS[dtype]
    data = bytes(stored)
    first = data[size - 1 :: size]
    for byte in _suspect(size, shift, bits):
        if byte in first:
            break
    else:
        return True
    one = int.from_bytes((1).to_bytes(size, "little") * (len(data) // size), "little")
    exponents = int.from_bytes(data, "little") >> shift & one * ((1 << bits) - 1)
    return not exponents + one & one << bits


@cache
def _suspect(size: int, shift: int, bits: int) -> bytes:
    """First bytes (sign, and exponent as far as there is room) that a NaN or an infinity may have."""
    ones = (((1 << bits) - 1) << shift) >> 8 * (size - 1)
    return bytes(byte for byte in range(256) if byte & ones == ones)


def value_problem(tensor: RawTensor) -> str:
    """Why no program can use these vectors (`has ...`), for a sentence about them; empty if it can.

    The one judgement of inspecting and writing. A tensor all of whose values are zero gives `has only values of zero`.
    """
    if not tensor.shape or 0 in tensor.shape:
        return f"has the shape {tensor.shape}, so it holds no vector"
    if tensor.dtype not in READABLE:
        return f"has {tensor.dtype} values; vectors are floating-point numbers"
    data = tensor.data
    if not are_finite(tensor.dtype, data):
        return "has values that are not finite; no program can generate images with it"
    return "has only values of zero" if are_zero(data) else ""


def is_zero(tensor: RawTensor) -> bool:
    """All values are plus zero (an untrained vector beside an output embedding) and there is at least one."""
    return are_zero(tensor.data)


def are_zero(data: bytes | memoryview) -> bool:
    """As `is_zero`, for bytes in memory."""
    return len(data) > 0 and not any(data)
