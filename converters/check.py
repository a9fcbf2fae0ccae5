"""Whether the numbers of a tensor are sound, seen in its bytes."""

from __future__ import annotations

from math import isfinite

from .dtypes import FLOATS, values
from .tensor import RawTensor


def is_finite(tensor: RawTensor) -> bool:
    """No NaN and no infinity; integers and types that are not in dtypes.FLOATS count as finite."""
    if tensor.dtype not in FLOATS:
        return True
    numbers = values(tensor)
    return isfinite(sum(numbers)) or all(map(isfinite, numbers))


def is_zero(tensor: RawTensor) -> bool:
    """All values are plus zero (an untrained vector beside an output embedding) and there is at least one."""
    data = tensor.data
    return len(data) > 0 and not any(data)
