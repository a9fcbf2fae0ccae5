"""Encoded images on disk, by content: a file is found by the hash of all that its numbers depend on."""

from __future__ import annotations

import hashlib
import json
import os
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
from ..tensors import from_raw, to_raw

VERSION = 1  # of the files and of the code that makes them


@dataclass(frozen=True, eq=False)
class Encoded:
    """What the VAE says of one variant of one image: `mean` and `deviation`, (channels, height, width) float32.

    `mask` is (1, height, width) uint8, 255 where the loss counts; None for an image without one.
    """

    mean: Tensor
    deviation: Tensor
    mask: Tensor | None

    def fits(self, shape: tuple[int, ...], *, masked: bool) -> bool:
        """Whether these may be latents of this (channels, height, width); a cache from elsewhere may hold anything."""
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
        """How much memory this takes."""
        return sum(part.nbytes for part in (self.mean, self.deviation, self.mask) if part is not None)


def cache_folder(place: str, run_folder: Path | None) -> Path | None:
    """Where `cache_latents` keeps its files; None for `memory` and `off`.

    The user's cache is `$PIVOTUNE_CACHE`, else `pivotune` in `$XDG_CACHE_HOME` or `~/.cache`.
    """
    if place in ("memory", "off"):
        return None
    if place == "run":
        return run_folder / "latents" if run_folder is not None else None
    if place != "user":
        return Path(place)
    own = os.environ.get("PIVOTUNE_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or os.environ.get("LOCALAPPDATA")
    return Path(own or (Path(base) if base else Path.home() / ".cache") / "pivotune").expanduser() / "latents"


def vae_identity(vae: Any) -> dict[str, Any]:
    """All that decides on the last bit of what a VAE says: weights, data type, device, threads, version of torch."""
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
    """The name of the file for an image: the hash of the VAE's identity and all that is said about the image."""
    text = json.dumps({**identity, **about}, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


class Cache:
    """A folder of encoded images; several runs may use it at the same time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.safetensors"

    def read(self, key: str) -> Encoded | None:
        """What was written under this key; None when there is nothing, or it is not whole and as it was written."""
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
        """Write a file, whole or not at all. ConvertError when the folder cannot be written to."""
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
