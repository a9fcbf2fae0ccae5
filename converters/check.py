"""Whether the numbers of a tensor are sound, seen in its bytes."""

from __future__ import annotations

from .tensor import RawTensor

# Bytes of a value, place and length of its exponent, which is all ones in NaN and infinity.
EXPONENTS = {"F64": (8, 52, 11), "F32": (4, 23, 8), "BF16": (2, 7, 8), "F16": (2, 10, 5), "F8_E5M2": (1, 2, 5)}


def is_finite(tensor: RawTensor) -> bool:
    """No NaN and no infinity; types without an exponent in EXPONENTS count as finite.

    All values are looked at at once, as one long number: adding one to each exponent carries where it is all ones.
    """
    if tensor.dtype not in EXPONENTS:
        return True
    size, shift, bits = EXPONENTS[tensor.dtype]
    data = tensor.data
    one = int.from_bytes((1).to_bytes(size, "little") * (len(data) // size), "little")
    exponents = int.from_bytes(data, "little") >> shift & one * ((1 << bits) - 1)
    return not exponents + one & one << bits


def is_zero(tensor: RawTensor) -> bool:
    """All values are plus zero (an untrained vector beside an output embedding) and there is at least one."""
    data = tensor.data
    return len(data) > 0 and not any(data)
