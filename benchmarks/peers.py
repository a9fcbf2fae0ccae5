"""How other trainers move their embeddings, restated in a few lines each from what they are known to do.

`WrappedTable` is OneTrainer's way, `WholeTable` that of the textual inversion scripts of diffusers and kohya.
"""

from __future__ import annotations

from itertools import cycle

import torch
from scene import VOCABULARY, Scene
from torch import Tensor, nn
from torch.nn.functional import embedding

RATE, CLIP = 5e-3, 1.0


class WrappedTable:
    """A parameter for each embedding, put behind the vocabulary by `cat` in every forward pass; one group an
    embedding.
    """

    def __init__(self, scene: Scene) -> None:
        self.table, self.pull, self.norm = scene.table, scene.pull, scene.norm
        self.vectors = [nn.Parameter(rows.clone()) for rows in scene.vectors]
        self.optimizer = torch.optim.AdamW([{"params": [rows], "lr": RATE} for rows in self.vectors], fused=True)
        self.captions = cycle(scene.table_ids())

    def forward(self) -> Tensor:
        return embedding(next(self.captions), torch.cat([self.table, *self.vectors]))

    def learn(self) -> None:
        """What follows the backward pass."""
        nn.utils.clip_grad_norm_(self.vectors, CLIP)
        self.optimizer.step()
        self.optimizer.zero_grad()
        with torch.no_grad():
            for rows in self.vectors:
                rows.mul_(self.norm / rows.norm(dim=1, keepdim=True))

    def step(self) -> None:
        self.forward().backward(self.pull)
        self.learn()

    def state(self) -> list[Tensor]:
        """Every tensor that training adds to the vocabulary."""
        moments = [value for moment in self.optimizer.state.values() for value in moment.values()]
        gradients = [rows.grad for rows in self.vectors if rows.grad is not None]
        return [*self.vectors, *gradients, *moments]


class WholeTable:
    """The vocabulary, grown by the embeddings' rows, is trained; then all rows but the embeddings' are put back by a
    mask.
    """

    def __init__(self, scene: Scene) -> None:
        self.pull, self.norm = scene.pull, scene.norm
        self.weight = nn.Parameter(torch.cat([scene.table, scene.vectors.flatten(0, 1)]))
        self.original = self.weight.detach().clone()
        self.old = torch.ones(len(self.weight), dtype=torch.bool)
        self.old[VOCABULARY:] = False
        self.optimizer = torch.optim.AdamW([self.weight], lr=RATE)
        self.captions = cycle(scene.table_ids())

    def forward(self) -> Tensor:
        return embedding(next(self.captions), self.weight)

    def learn(self) -> None:
        self.optimizer.step()
        self.optimizer.zero_grad()
        with torch.no_grad():
            self.weight[self.old] = self.original[self.old]
            new = self.weight[VOCABULARY:]
            new.mul_(self.norm / new.norm(dim=1, keepdim=True))

    def step(self) -> None:
        self.forward().backward(self.pull)
        self.learn()

    def state(self) -> list[Tensor]:
        moments = [value for moment in self.optimizer.state.values() for value in moment.values()]
        return [self.weight, self.original, *([self.weight.grad] if self.weight.grad is not None else []), *moments]
