"""Weights at aligned addresses: the CPU's kernels round differently for others, so results would depend on the file.

The libraries map .safetensors files into memory, where tensors lie at any address. Within `aligned_reading` those that
need no conversion are read into memory of their own instead, so that no copy of a mapped one is needed.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.utils.deterministic
from torch import Tensor

from ...converters import safetensors_file
from ...converters.errors import ConvertError
from ...converters.file_range import FileRange, changed
from ...converters.tensor import RawTensor
from ..tensors import CODES

ALIGNMENT = 64  # bytes, as of PyTorch's own allocations


def align(part: torch.nn.Module) -> None:
    """Copy the weights of a model that are not aligned."""
    for tensor in (*part.parameters(), *part.buffers()):
        if tensor.data_ptr() % ALIGNMENT:
            tensor.data = tensor.data.clone()


@contextmanager
def aligned_reading(dtype: torch.dtype) -> Iterator[None]:
    """Within it, diffusers and transformers read the tensors of .safetensors files that have this dtype into memory.

    Tensors of other dtypes are mapped, as a conversion copies them. Both libraries look the replaced functions up when
    they read a file; in a version that does not, tensors are mapped, and `align` copies them.
    """
    import safetensors.torch
    import transformers.modeling_utils

    load_file, safe_open = safetensors.torch.load_file, safetensors.safe_open

    def read_file(filename: Any, device: Any = "cpu", **options: Any) -> dict[str, Tensor]:
        found = _tensors(filename, dtype) if str(device) == "cpu" else {}
        if not found:
            loaded: dict[str, Tensor] = load_file(filename, device=device, **options)
            return loaded
        with safe_open(filename, framework="pt", device=device) as file:
            names = list(file.keys())
            return {name: _read(found[name], dtype) if name in found else file.get_tensor(name) for name in names}

    def open_file(filename: Any, *arguments: Any, **options: Any) -> Any:
        opened = safe_open(filename, *arguments, **options)
        return _Opened(opened, _tensors(filename, dtype), dtype) if options.get("device") == "cpu" else opened

    with (
        _replaced(torch.utils.deterministic, "fill_uninitialized_memory", False),  # all of it is read into
        _replaced(safetensors.torch, "load_file", read_file),
        _replaced(transformers.modeling_utils, "safe_open", open_file),
    ):
        yield


@contextmanager
def _replaced(module: Any, name: str, value: Any) -> Iterator[None]:
    original = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, original)


class _Opened:
    """An open .safetensors file, as transformers uses it."""

    def __init__(self, opened: Any, tensors: dict[str, RawTensor], dtype: torch.dtype) -> None:
        self._opened, self._tensors, self._dtype = opened, tensors, dtype

    def get_slice(self, name: str) -> Any:
        mapped = self._opened.get_slice(name)
        return _Slice(mapped, self._tensors[name], self._dtype) if name in self._tensors else mapped

    def __getattr__(self, name: str) -> Any:
        return getattr(self._opened, name)

    def __enter__(self) -> _Opened:
        self._opened.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._opened.__exit__(*error)


class _Slice:
    """A tensor that is read when it is taken as a whole; of a part, the mapped one is used."""

    def __init__(self, mapped: Any, raw: RawTensor, dtype: torch.dtype) -> None:
        self._mapped, self._raw, self._dtype = mapped, raw, dtype

    def __getitem__(self, index: Any) -> Tensor:
        part: Tensor = _read(self._raw, self._dtype) if index is ... else self._mapped[index]
        return part

    def __getattr__(self, name: str) -> Any:
        return getattr(self._mapped, name)


def _tensors(filename: Any, dtype: torch.dtype) -> dict[str, RawTensor]:
    """The tensors of a file with this dtype; none for one that we do not read, of which the libraries say why."""
    try:
        tensors, _ = safetensors_file.read(filename, cached=0)
    except (ConvertError, OSError):
        return {}
    return {name: raw for name, raw in tensors.items() if raw.dtype == CODES[dtype]}


def _read(raw: RawTensor, dtype: torch.dtype) -> Tensor:
    """A tensor in memory of its own. ConvertError if the file has changed since its header was read."""
    place = raw.stored
    assert isinstance(place, FileRange)
    values = torch.empty(place.length, dtype=torch.uint8)
    left = values.numpy().data
    with place.origin.opened() as descriptor, io.FileIO(descriptor, closefd=False) as file:
        file.seek(place.offset)
        while left:
            count = file.readinto(left[: 1 << 30])  # systems read at most 2 GB at once
            if not count:
                raise changed(place.origin.path)
            left = left[count:]
    return values.view(dtype).reshape(raw.shape)
