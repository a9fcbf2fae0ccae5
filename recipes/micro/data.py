"""The training set: scenes and their images, drawn once from a seed and kept in a folder."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .draw import draw
from .grammar import Scene, sample_scene


@dataclass(frozen=True, eq=False)
class Drawn:
    """Scenes with their images, (count, 64, 64, 3) uint8."""

    scenes: list[Scene]
    images: npt.NDArray[np.uint8]


def drawn(folder: Path, count: int, seed: int, free: float = 0.3) -> Drawn:
    """Draw `count` scenes, or take them from the folder if an earlier call left them there."""
    file = folder / f"drawn-{seed}-{count}.pickle"
    if file.exists():
        with file.open("rb") as stream:  # written below, by ourselves
            return Drawn(*pickle.load(stream))
    rng = np.random.default_rng(seed)
    scenes = [sample_scene(rng, free) for _ in range(count)]
    images = np.stack([draw(scene) for scene in scenes])
    with file.open("wb") as stream:
        pickle.dump((scenes, images), stream)
    return Drawn(scenes, images)


def to_tensor(images: npt.NDArray[np.uint8]) -> Tensor:
    """(count, 64, 64, 3) uint8 to (count, 3, 64, 64) float32 from -1 to 1."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1


def to_images(tensor: Tensor) -> npt.NDArray[np.uint8]:
    """(count, 3, 64, 64) from -1 to 1 to (count, 64, 64, 3) uint8."""
    levels = ((tensor.detach().float() + 1) * 127.5).round().clamp(0, 255)
    return levels.permute(0, 2, 3, 1).to(torch.uint8).numpy()
