"""Pivotune's own code, as a train stage calls it: injection, slots, the embeddings' trainer."""

from __future__ import annotations

from itertools import cycle
from types import SimpleNamespace
from typing import Any

import torch
from scene import VECTORS, VOCABULARY, Scene
from torch import Tensor, nn

from pivotune.pipeline.embeddings.injection import ActiveRows, EmbeddingRows, Encoder, Injection
from pivotune.pipeline.embeddings.norms import norm_statistics
from pivotune.pipeline.recipe.intervals import Clock, Every
from pivotune.pipeline.recipe.model import EmbeddingSpec
from pivotune.pipeline.recipe.options import OptimizerOptions
from pivotune.pipeline.recipe.typed import options_of
from pivotune.pipeline.train.embeddings import EmbeddingSettings, EmbeddingTrainer

OPTIMIZER = options_of(OptimizerOptions, kind="adamw")
KEY = "clip_l"
CLOCK = Clock(1, 100, 10.0, 1.0)


class Vocabulary(nn.Module):
    """As much of a text encoder as injection asks for."""

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.embedding: nn.Module = nn.Embedding.from_pretrained(table, freeze=True)

    def get_input_embeddings(self) -> nn.Module:
        return self.embedding

    def set_input_embeddings(self, module: nn.Module) -> None:
        self.embedding = module


class Counted:
    """A tokenizer of the right size that takes new tokens and tokenizes nothing: ids are made by the scene."""

    def __init__(self) -> None:
        self.ids: dict[str, int] = {}

    def add_tokens(self, tokens: list[Any]) -> int:
        self.ids |= {str(token): len(self) + at for at, token in enumerate(tokens)}
        return len(tokens)

    def convert_tokens_to_ids(self, tokens: list[str]) -> list[int]:
        return [self.ids[token] for token in tokens]

    def __len__(self) -> int:
        return VOCABULARY + len(self.ids)


class Slots:
    """One step of the embedding part: embeddings of the caption made active, looked up, pulled, moved, normed."""

    def __init__(self, scene: Scene, module: Any = None) -> None:
        module = Vocabulary(scene.table) if module is None else module
        names = [f"<embedding-{n}>" for n in range(scene.embeddings)]
        encoder = Encoder(KEY, "encoder", "tokenizer", module, Counted(), scene.table.shape[1])
        rows = EmbeddingRows(dict(zip(names, scene.vectors, strict=True)))
        self.module, self.pull = module, scene.pull
        self.injection = Injection(SimpleNamespace(), [encoder], {KEY: rows})
        embeddings = [EmbeddingSpec(name, "ring", VECTORS, True, None, Every(0, "never")) for name in names]
        self.trainer = EmbeddingTrainer(
            self.injection, embeddings, {KEY: norm_statistics(scene.table)},
            EmbeddingSettings(learning_rate=5e-3, optimizer=OPTIMIZER, clip_norm=1.0, preserve_norm="median"),
        )  # fmt: skip
        ids = [
            scene.ids(n, [VOCABULARY + VECTORS * at for at in range(len(h))]) for n, h in enumerate(scene.by_caption)
        ]
        self.captions = cycle(list(zip(scene.texts(), ids, strict=True)))
        self.active: dict[str, ActiveRows] = {}

    def prepare(self) -> Tensor:
        """What precedes the forward pass: which embeddings the caption holds, which still run. Returns its ids."""
        text, ids = next(self.captions)
        self.active = self.trainer.begin(self.injection.embeddings_in([text]), CLOCK)
        return ids

    def forward(self) -> Tensor:
        ids = self.prepare()
        found: Tensor = self.module.get_input_embeddings()(ids)
        return found

    def learn(self) -> None:
        """What follows the backward pass."""
        self.trainer.step(self.trainer.gradient_norm(1.0), CLOCK)

    def step(self) -> None:
        self.forward().backward(self.pull)
        self.learn()

    def state(self) -> list[Tensor]:
        """Every tensor that training adds to the vocabulary."""
        trainer, rows = self.trainer, self.injection.rows[KEY]
        leaves = [one.leaf for one in self.active.values()]
        gradients = [leaf.grad for leaf in leaves if leaf.grad is not None]
        adam = trainer.states.optimizers[KEY].adam
        state = [rows.values, trainer.norms[KEY], trainer.rates[KEY], adam.moment, adam.square, adam.steps]
        return [*state, *leaves, *gradients, *(one.index for one in self.active.values())]


def unique_bytes(tensors: list[Tensor]) -> int:
    """Bytes of all storages behind the tensors, each once."""
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())


torch.set_num_threads(1)
