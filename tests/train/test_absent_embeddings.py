"""An embedding that is not in a batch is unchanged, bit for bit, with every optimizer."""

from __future__ import annotations

import pytest
import torch

from pivotune import schemas
from pivotune.pipeline.embeddings.injection import EmbeddingRows
from pivotune.pipeline.errors import StageError
from pivotune.pipeline.recipe.optimizers import OPTIMIZERS
from pivotune.pipeline.recipe.options import OptimizerOptions
from pivotune.pipeline.recipe.typed import options_of
from pivotune.pipeline.train.packing import pack
from pivotune.pipeline.train.row_optimizers import row_optimizer


def test_every_optimizer_of_the_schema_is_tested() -> None:
    kinds = schemas.schema("tables/optimizer.json")["properties"]["kind"]["enum"]
    assert sorted(kinds) == sorted(OPTIMIZERS)


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_absent_embeddings_stay_bit_equal(kind: str) -> None:
    draw = torch.Generator().manual_seed(0)
    rows = EmbeddingRows({name: torch.randn(2, 8, generator=draw) for name in ("seen", "absent", "later")})
    options = options_of(OptimizerOptions, kind=kind, weight_decay=0.1)
    try:
        optimizer = row_optimizer(rows, options)
        step(optimizer, rows, "later", draw)  # it has moments, which must not carry it on
    except (StageError, RuntimeError, ValueError) as error:
        pytest.skip(f"{kind} cannot be used here: {error}")
    before = rows.values.clone()
    state = {name: tensor for name, tensor in pack(optimizer.state()).tensors.items() if "later" in name}
    for _ in range(5):
        step(optimizer, rows, "seen", draw)
    optimizer.use_average(["seen"], True)
    for name in ("absent", "later"):
        span = rows.spans[name]
        assert torch.equal(rows.of(name), before[span.start : span.stop])
    assert not torch.equal(rows.of("seen"), before[:2])
    after = pack(optimizer.state()).tensors
    assert all(torch.equal(after[name], tensor) for name, tensor in state.items())


def step(optimizer, rows, embedding, draw) -> None:
    index = torch.tensor(rows.index([embedding]))
    gradient = torch.randn(2, 8, generator=draw)
    optimizer.step([embedding], index, rows.values[index], gradient, torch.full((2,), 1e-2))
