"""Three embeddings in small vocabularies, without a model: their trainer can be tested in milliseconds."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from pivotune.pipeline.distributed import SINGLE_PROCESS, Processes
from pivotune.pipeline.embeddings.injection import EmbeddingRows, Encoder, Injection
from pivotune.pipeline.embeddings.norms import norm_statistics
from pivotune.pipeline.recipe.intervals import Clock, Every
from pivotune.pipeline.recipe.model import EmbeddingSpec
from pivotune.pipeline.train.embeddings import EmbeddingSettings, EmbeddingTrainer

NAMES = ("<a>", "<b>", "<c>")
WIDTHS = {"clip_l": 6, "clip_g": 10}


class Vocabulary(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(width)
        self.embedding: Any = nn.Embedding.from_pretrained(torch.randn(20, width, generator=draw), freeze=True)

    def get_input_embeddings(self) -> Any:
        return self.embedding

    def set_input_embeddings(self, module: Any) -> None:
        self.embedding = module


class Tokenizer:
    def __init__(self) -> None:
        self.tokens = 20

    def add_tokens(self, tokens: list[Any]) -> int:
        self.tokens += len(tokens)
        return len(tokens)

    def convert_tokens_to_ids(self, tokens: list[Any]) -> list[int]:
        return list(range(self.tokens - len(tokens), self.tokens))

    def __len__(self) -> int:
        return self.tokens


def embedding(name: str, **changes: Any) -> EmbeddingSpec:
    options: dict[str, Any] = {"initial_text": "x", "tokens": 2, "train": True, "learning_rate": None}
    return EmbeddingSpec(placeholder=name, **options | {"stop_after": Every(0, "never")} | changes)


def trainer(
    settings: EmbeddingSettings, embeddings: list[EmbeddingSpec] | None = None, sharing: Processes = SINGLE_PROCESS
) -> EmbeddingTrainer:
    """A trainer of three embeddings of two vectors in two encoders, all initially ones; sharded over `sharing`."""
    embeddings = embeddings or [embedding(name) for name in NAMES]
    encoders, rows, statistics = [], {}, {}
    for key, width in WIDTHS.items():
        module = Vocabulary(width)
        encoders.append(Encoder(key, f"encoder_{key}", f"tokenizer_{key}", module, Tokenizer(), width))
        rows[key] = EmbeddingRows({one.placeholder: torch.ones(2, width) for one in embeddings})
        statistics[key] = norm_statistics(module.embedding.weight)
    return EmbeddingTrainer(
        Injection(SimpleNamespace(), encoders, rows), embeddings, statistics, settings, sharing=sharing
    )


def pull(one: EmbeddingTrainer, names: list[str], step: int, goal: float = 2.0, steps: int = 100) -> float:
    """A step whose loss is the squared distance of these embeddings' vectors from `goal`, over two; returns its
    norm.
    """
    clock = Clock(step, steps, 10.0, float(step))
    active = one.begin(names, clock)
    for rows in active.values():
        if rows.leaf.requires_grad:
            rows.leaf.grad = rows.leaf.detach() - goal
    norm = one.gradient_norm(1.0)
    one.step(norm, clock)
    return norm


def values(one: EmbeddingTrainer) -> dict[str, Tensor]:
    return {key: rows.values.clone() for key, rows in one.injection.rows.items()}
