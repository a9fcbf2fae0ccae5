"""Captions as token ids with vectors in their slots: what the text encoder reads in training."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from .build import WIDTH
from .captions import SLOT, caption
from .grammar import BACKGROUNDS, BIG, RGB, SHAPES, SMALL, TEXTURES, Scene, Thing

ATTRIBUTES = ("shape", "texture", "size", "background", "colour", "second", "mark")
FEATURES = len(SHAPES) + len(TEXTURES) + 3 + 4 + 4  # of a thing


@dataclass(frozen=True, eq=False)
class Captions:
    """Tokenised captions: all tensors share their first dimension."""

    ids: Tensor  # (count, 77) int64
    things: Tensor  # (count, FEATURES) float32, for the compound network
    classes: Tensor  # (count, 4) int64: shape, texture, size, background; 0 where it is not told
    colours: Tensor  # (count, 3, 4) float32: first, second, mark as red, green, blue (-1 to 1) and told or not

    def rows(self, chosen: Tensor) -> Captions:
        """Some of them."""
        return Captions(self.ids[chosen], self.things[chosen], self.classes[chosen], self.colours[chosen])


class Compound(nn.Module):
    """Says a whole thing in two vectors, of which one is enough. Thrown away after training."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(FEATURES, 128), nn.SiLU(), nn.Linear(128, 128), nn.SiLU(), nn.Linear(128, 2 * WIDTH)
        )

    def forward(self, things: Tensor) -> Tensor:
        """(count, FEATURES) to (count, 2, WIDTH), with some noise: near vectors shall mean the same thing."""
        vectors: Tensor = self.layers(things).unflatten(-1, (2, WIDTH))
        size = vectors.detach().square().mean(-1, keepdim=True).sqrt()
        return vectors + 0.1 * size * torch.randn_like(vectors)


def tokenise(scenes: list[Scene], tokenizer: CLIPTokenizer, seed: int) -> Captions:
    """A fresh caption for every scene."""
    rng = np.random.default_rng(seed)
    captions = [caption(scene, rng) for scene in scenes]
    texts = [said.text for said in captions]
    ids = tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids
    pairs = list(zip(scenes, captions, strict=True))
    return Captions(
        ids,
        torch.tensor([features(scene.thing) for scene in scenes]),
        torch.tensor([_classes(scene, said.told) for scene, said in pairs]),
        torch.tensor([_colours(scene.thing, said.told) for scene, said in pairs]),
    )


def encode(encoder: CLIPTextModel, compound: Compound, captions: Captions, slot: int, length: int = 77) -> Tensor:
    """The encoder's last hidden states, (count, length, WIDTH), with the compound vectors in the slots."""
    ids = captions.ids[:, :length]
    slots = ids == slot
    order = slots.cumsum(1)[slots] - 1  # 0 for a caption's first slot, 1 for its second
    vectors = compound(captions.things)[slots.nonzero()[:, 0], order]
    table = encoder.get_input_embeddings()

    def fill(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return output.masked_scatter(slots[..., None], vectors)

    handle = table.register_forward_hook(fill)
    try:
        return encoder(ids).last_hidden_state
    finally:
        handle.remove()


def slot_id(tokenizer: CLIPTokenizer) -> int:
    """The token that stands for a compound vector."""
    return int(tokenizer(SLOT, add_special_tokens=False).input_ids[0])


def features(thing: Thing) -> list[float]:
    """A thing as numbers."""
    shape = [float(thing.shape == name) for name in SHAPES]
    texture = [float(thing.texture == name) for name in TEXTURES]
    return [*shape, *texture, *_levels(thing.colour)[:3], *_levels(thing.second), *_levels(thing.mark)]


def _classes(scene: Scene, told: frozenset[str]) -> list[int]:
    """Numbers from 1 for what is told, 0 for what is not."""
    size = 1 if scene.radius <= SMALL[1] else 2 if scene.radius >= BIG[0] else 0
    nearest = min(BACKGROUNDS, key=lambda word: np.abs(np.subtract(BACKGROUNDS[word], scene.background)).max())
    numbers = {
        "shape": 1 + SHAPES.index(scene.thing.shape),
        "texture": 1 + TEXTURES.index(scene.thing.texture),
        "size": size,
        "background": 1 + list(BACKGROUNDS).index(nearest),
    }
    return [number if name in told else 0 for name, number in numbers.items()]


def _colours(thing: Thing, told: frozenset[str]) -> list[list[float]]:
    """What is told of the three colours."""
    parts = {"colour": thing.colour, "second": thing.second, "mark": thing.mark}
    return [_levels(colour if name in told else None) for name, colour in parts.items()]


def _levels(colour: RGB | None) -> list[float]:
    """Red, green, blue from -1 to 1, then 1; all 0 without a colour."""
    return [0.0] * 4 if colour is None else [*(level / 127.5 - 1 for level in colour), 1.0]
