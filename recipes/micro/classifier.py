"""A small network that names what it sees, trained on drawn images only: a second opinion on the model."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from .data import Drawn, to_tensor
from .draw import Image
from .grammar import BACKGROUNDS, COLOURS, SHAPES, TEXTURES, Scene, distance

HEADS: dict[str, tuple[str, ...]] = {
    "shape": SHAPES,
    "texture": TEXTURES,
    "colour": tuple(COLOURS),
    "background": tuple(BACKGROUNDS),
}


def build_classifier() -> nn.Module:
    """(count, 3, 64, 64) to the heads' answers side by side."""
    layers: list[nn.Module] = []
    for before, after in ((3, 16), (16, 32), (32, 64), (64, 64)):
        layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.BatchNorm2d(after), nn.ReLU()]
    answers = sum(map(len, HEADS.values()))
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * 16, 128), nn.ReLU(), nn.Linear(128, answers))


def truth(scene: Scene) -> list[int]:
    """The right answers, as places in each head's list."""
    words = {
        "shape": scene.thing.shape,
        "texture": scene.thing.texture,
        "colour": min(COLOURS, key=lambda word: distance(COLOURS[word], scene.thing.colour)),
        "background": min(BACKGROUNDS, key=lambda word: distance(BACKGROUNDS[word], scene.background)),
    }
    return [HEADS[head].index(word) for head, word in words.items()]


def train_classifier(data: Drawn, epochs: int = 14, seed: int = 0) -> nn.Module:
    """Trained on drawings with noise and blur on them, for what a decoder draws is never quite sharp."""
    torch.manual_seed(seed)
    network, answers = build_classifier(), torch.tensor([truth(scene) for scene in data.scenes])
    steps = epochs * (len(answers) // 64)
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    for _ in range(steps):
        rows = torch.randint(len(answers), (64,))
        images = _worn(to_tensor(data.images[rows.numpy()]))
        split = network(images).split([len(words) for words in HEADS.values()], dim=1)
        loss = sum(functional.cross_entropy(head, answers[rows, n]) for n, head in enumerate(split))
        assert isinstance(loss, Tensor)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return network.eval()


@torch.no_grad()
def classify(network: nn.Module, images: npt.NDArray[np.uint8] | list[Image]) -> list[dict[str, str]]:
    """What it names in each image, by head."""
    answers = network(to_tensor(np.asarray(images)))
    split = answers.split([len(words) for words in HEADS.values()], dim=1)
    named = [[words[n] for n in head.argmax(1)] for words, head in zip(HEADS.values(), split, strict=True)]
    return [dict(zip(HEADS, row, strict=True)) for row in zip(*named, strict=True)]


def _worn(images: Tensor) -> Tensor:
    """Half of the batch blurred, all of it noisy."""
    half = len(images) // 2
    soft = functional.avg_pool2d(functional.pad(images[:half], (1, 1, 1, 1), mode="replicate"), 3, 1)
    worn = torch.cat([soft, images[half:]])
    return worn + 0.05 * torch.rand(len(worn), 1, 1, 1) * torch.randn_like(worn)
