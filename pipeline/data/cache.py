"""A cache of encoded images on disk, by the hash of everything that they depend on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...converters import safetensors_file
from ...converters.errors import ConvertError
from ...converters.tensor import RawTensor
from ..device import device_name
from ..files import user_cache
from ..tensors import from_raw, to_raw

VERSION = 2  # of the files and of the code that makes them


@dataclass(frozen=True, eq=False)
class Encoded:
    """The VAE's distribution for one variant of one image: `mean` and `deviation`, (channels, height, width) float32.

    `mask` is (1, height, width) uint8, 255 where the loss counts; None for an image without a mask.
    """

    mean: Tensor
    deviation: Tensor
    mask: Tensor | None

    def fits(self, shape: tuple[int, ...], *, masked: bool) -> bool:
        """Whether these may be latents of this (channels, height, width), since a cache may contain anything."""
        parts = (self.mean, self.deviation)
        return (
            all(part.dtype == torch.float32 and tuple(part.shape) == shape for part in parts)
            and all(bool(part.isfinite().all()) for part in parts)
            and bool((self.deviation >= 0).all())
            and (tuple(self.mask.shape) == (1, *shape[1:]) if self.mask is not None else not masked)
            and (masked or self.mask is None)
        )

    @property
    def bytes(self) -> int:
        """Bytes of memory."""
        return sum(part.nbytes for part in (self.mean, self.deviation, self.mask) if part is not None)


def cache_folder(setting: str, run_folder: Path | None) -> Path | None:
    """The folder of the cache by `cache_latents`; None for `memory` and `off`.

    Of `user` it is in the user's cache (see `user_cache`).
    """
    if setting in ("memory", "off"):
        return None
    if setting == "run":
        return run_folder / "latents" if run_folder is not None else None
    if setting != "user":
        return Path(setting)
    return user_cache() / "latents"


def vae_identity(vae: Any) -> dict[str, Any]:
    """Everything that affects the VAE's output, bit for bit: weights, dtype, device, threads, version of torch."""
    total = hashlib.sha256(json.dumps(dict(vae.config), sort_keys=True, default=str).encode())
    for name, tensor in sorted(vae.state_dict().items()):
        flat = tensor.detach().to("cpu").contiguous().reshape(-1).view(torch.uint8)
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        total.update(flat.numpy().data)
    return {
        "version": VERSION, "vae": total.hexdigest(), "dtype": str(vae.dtype), "device": vae.device.type,
        "device_name": device_name(vae.device), "torch": torch.__version__,
        "threads": torch.get_num_threads() if vae.device.type == "cpu" else 0,
    }  # fmt: skip


def key_of(identity: Mapping[str, Any], **about: Any) -> str:
    """The name of the file for an image: the hash of the VAE's identity and of these facts about the image."""
    text = json.dumps({**identity, **about}, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


class Cache:
    """A folder of encoded images; several runs may use it at the same time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.safetensors"

    def read(self, key: str) -> Encoded | None:
        """The entry of this key; None if it is missing or corrupt."""
        try:
            tensors, metadata = safetensors_file.read(self.path(key))
            if metadata.get("content") != _content(tensors):
                return None
            mask = tensors.get("mask")
            return Encoded(
                from_raw(tensors["mean"]), from_raw(tensors["deviation"]),
                None if mask is None else torch.frombuffer(bytearray(mask.data), dtype=torch.uint8).reshape(mask.shape),
            )  # fmt: skip
        except (ConvertError, OSError, KeyError, ValueError):
            return None

    def write(self, key: str, encoded: Encoded) -> None:
        """Write an entry atomically. ConvertError when the folder cannot be written to."""
        tensors = {"mean": to_raw(encoded.mean), "deviation": to_raw(encoded.deviation)}
        if encoded.mask is not None:
            tensors["mask"] = RawTensor("U8", tuple(encoded.mask.shape), encoded.mask.numpy().tobytes())
        safetensors_file.write(self.path(key), tensors, {"content": _content(tensors)}, overwrite=True)


def _content(tensors: Mapping[str, RawTensor]) -> str:
    total = hashlib.sha256()
    for name, raw in sorted(tensors.items()):
        total.update(f"{name} {raw.dtype} {raw.shape}".encode())
        total.update(raw.data)
    return total.hexdigest()
