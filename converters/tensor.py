"""A tensor as the bytes of a file: converting is moving bytes, never arithmetic."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

# Bits a value takes, by the names safetensors gives to data types.
DTYPE_BITS: dict[str, int] = {
    "F64": 64, "I64": 64, "U64": 64, "C64": 64,
    "F32": 32, "I32": 32, "U32": 32,
    "F16": 16, "BF16": 16, "I16": 16, "U16": 16,
    "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "I8": 8, "U8": 8, "BOOL": 8,
    "F6_E2M3": 6, "F6_E3M2": 6, "F4": 4,
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class RawTensor:
    """`dtype` as safetensors spells it, `shape`, and the little-endian bytes in C order.

    `data` may be a view of a memory-mapped file, so a large tensor costs nothing until it is written.
    """

    dtype: str
    shape: tuple[int, ...]
    data: bytes | memoryview

    def __post_init__(self) -> None:
        want = nbytes(self.dtype, self.shape)
        if len(self.data) != want:
            raise ValueError(f"{self.dtype} {self.shape} takes {want} bytes, not {len(self.data)}")


def nbytes(dtype: str, shape: tuple[int, ...]) -> int:
    """Bytes a tensor of this data type and shape takes in a safetensors file. Raises KeyError for an unknown type."""
    return (DTYPE_BITS[dtype] * prod(shape) + 7) // 8
