"""Whether the numbers of a tensor are sound, seen in its bytes."""

from __future__ import annotations

from functools import cache
from struct import iter_unpack

from .tensor import RawTensor

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
    """As `is_finite`, of bytes that are at hand."""
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


def is_zero(tensor: RawTensor) -> bool:
    """All values are plus zero (an untrained vector beside an output embedding) and there is at least one."""
    return are_zero(tensor.data)


def are_zero(data: bytes | memoryview) -> bool:
    """As `is_zero`, of bytes that are at hand."""
    return len(data) > 0 and not any(data)
