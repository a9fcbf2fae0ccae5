"""Converting dtypes, exactly rounded and without an array library; overflow is refused, underflow is counted."""

from __future__ import annotations

import struct
import sys
from array import array
from collections.abc import Sequence
from functools import cache
from math import copysign, ldexp, nan

from .errors import ConvertError
from .tensor import FLOATS, RawTensor

_CODES = {"F32": "f", "F16": "e", "F64": "d"}
_EIGHTS = {"F8_E4M3": 3, "F8_E5M2": 2}  # bits of the fraction, of a sign and seven bits


def convert(tensor: RawTensor, dtype: str, what: str = "tensor") -> tuple[RawTensor, int]:
    """The tensor in another of FLOATS, rounded to nearest, ties to even, and how many values became zero.

    Bits are kept if the type is the same already. Raises ConvertError if a finite value would become infinite
    (above 65504 in F16) or a dtype is not in FLOATS; `what` names the tensor in the message.
    """
    if tensor.dtype == dtype:
        return tensor, 0
    for kind in (tensor.dtype, dtype):
        if kind not in FLOATS:
            raise ConvertError(f"{what}: cannot be converted from {tensor.dtype} to {dtype}; keep its type")
    numbers = values(tensor)
    try:
        data = _bfloat16(numbers) if dtype == "BF16" else struct.pack(f"<{len(numbers)}{_CODES[dtype]}", *numbers)
    except OverflowError:
        raise ConvertError(f"{what}: has values too large for {dtype}; write it as BF16 or F32") from None
    result = RawTensor(dtype, tensor.shape, data)
    return result, sum(old != 0 and new == 0 for old, new in zip(numbers, values(result), strict=True))


def values(tensor: RawTensor) -> Sequence[float]:
    """The numbers of a tensor of READABLE, in C order, as Python sees them (each exactly)."""
    if tensor.dtype in _EIGHTS:
        table = _eights(tensor.dtype)
        return [table[byte] for byte in tensor.data]
    if tensor.dtype == "BF16":
        halves = array("H", bytes(tensor.data))
        if sys.byteorder == "big":
            halves.byteswap()
        wide = array("I", [half << 16 for half in halves])
        return memoryview(wide.tobytes()).cast("f").tolist()
    data = tensor.data
    code = _CODES[tensor.dtype]
    return struct.unpack(f"<{len(data) // struct.calcsize(code)}{code}", data)


@cache
def _eights(dtype: str) -> list[float]:
    """The number of each byte. E5M2 is the upper half of binary16; E4M3 has NaN where all bits are one, no infinity."""
    if dtype == "F8_E5M2":
        return [struct.unpack("<e", bytes((0, byte)))[0] for byte in range(256)]
    found = []
    for byte in range(256):
        exponent, fraction = byte >> 3 & 15, byte & 7
        size = ldexp(fraction + 8, exponent - 10) if exponent else ldexp(fraction, -9)
        found.append(copysign(nan if byte & 127 == 127 else size, -1 if byte & 128 else 1))
    return found


def _bfloat16(numbers: Sequence[float]) -> bytes:
    """The upper halves of binary32, rounded by what the lower halves hold. Raises OverflowError."""
    halves = array("H", [_upper_half(bits, number) for bits, number in zip(_bits(numbers), numbers, strict=True)])
    if sys.byteorder == "big":
        halves.byteswap()
    return halves.tobytes()


def _bits(numbers: Sequence[float]) -> Sequence[int]:
    """The bits of binary32. What a binary64 value loses is kept as an odd last bit, so as not to round twice."""
    narrow = struct.pack(f"<{len(numbers)}f", *numbers)
    pairs = zip(
        struct.unpack(f"<{len(numbers)}I", narrow), struct.unpack(f"<{len(numbers)}f", narrow), numbers, strict=True
    )
    return [
        bits if near == number or number != number else bits - (abs(near) > abs(number)) | 1
        for bits, near, number in pairs
    ]


def _upper_half(bits: int, number: float) -> int:
    if number != number:  # NaN stays NaN: its payload may be in the lower half alone
        return bits >> 16 | 0x40
    rounded = bits + 0x7FFF + (bits >> 16 & 1) >> 16
    if rounded & 0x7FFF == 0x7F80 and bits & 0x7FFFFFFF != 0x7F800000:
        raise OverflowError
    return rounded
