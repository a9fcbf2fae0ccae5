"""A part spread over processes by FSDP is trained as in one process, each with its shard of what that takes."""

from __future__ import annotations

import pytest
import torch
from run.launching import launched
from train.little_encoder import SETTINGS, TUNED, made, step

from pivotune.pipeline.errors import StageError
from pivotune.pipeline.launch import join_processes
from pivotune.pipeline.train.fsdp import FsdpPart
from pivotune.pipeline.train.weights import WeightTrainer

FSDP = {
    "ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_TRANSFORMER_CLS_TO_WRAP": "Layer,ElsewhereInThePipeline",
}  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_sharded_part_matches_one_process(tmp_path, dtype):
    pipe, weights = made(dtype)
    alone = WeightTrainer("finetune.encoder", weights, SETTINGS, text=True)
    norms = [step(pipe, alone, number) for number in range(3)]
    state = alone.state()
    alone.finish()

    def work(rank):
        processes = join_processes("cpu")
        pipe, weights = made(dtype)
        part = pipe.encoder
        trainer = WeightTrainer(
            "finetune.encoder", weights, SETTINGS, text=True, fsdp=FsdpPart(pipe, "encoder", TUNED, main=processes.main)
        )
        assert processes.sharding
        assert pipe.encoder.table is part.table  # prompts need it whole
        assert str(type(pipe.encoder)) == str(type(part))
        initial = {name: weight.clone() for name, weight in weights.items()}
        norms = [step(pipe, trainer, number, [slice(rank, rank + 1)]) for number in range(2)]
        with trainer.ema_swapped():
            assert (pipe.encoder is part) == processes.main
        kept = trainer.state()
        trainer.restore(kept if processes.main else torch.load(tmp_path / "state.pt", weights_only=False))
        assert all(torch.equal(weights[name], initial[name]) or processes.main for name in TUNED)
        norms.append(step(pipe, trainer, 2, [slice(rank, rank + 1)]))
        own = [weight.to_local() for weight in trainer.masters.values()]
        own += [
            kept.to_local() for one in trainer.optimizer.state.values() for name, kept in one.items() if "exp" in name
        ]
        own += [average.shadow.to_local() for average in trainer.averages.values()]
        size, saved = sum(tensor.numel() for tensor in own), trainer.state()
        trainer.finish()
        assert pipe.encoder is part
        torch.save((norms, size, saved, dict(weights)), tmp_path / f"{rank}.pt")

    pipe, two = made(dtype)
    before = WeightTrainer("finetune.encoder", two, SETTINGS, text=True)
    for number in range(2):
        step(pipe, before, number)
    torch.save(before.state(), tmp_path / "state.pt")
    ended = launched(tmp_path, work, 2, FSDP)
    assert ended.codes == [0, 0], ended.outputs
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=False) for rank in range(2)]
    close = {"rtol": 1e-5, "atol": 1e-6} if dtype == torch.float32 else {"rtol": 0.05, "atol": 0.01}
    for theirs, size, _, trained in found:
        torch.testing.assert_close(theirs, norms, **close)
        torch.testing.assert_close(trained, dict(weights), **close)
        assert size == sum(weight.numel() for weight in weights.values()) * 4 // 2  # value, moments, average
    torch.testing.assert_close(found[0][2].tensors, state.tensors, **close)
    assert not found[1][2].tensors


def test_invalid_fsdp_settings_are_an_error(monkeypatch):
    monkeypatch.setenv("FSDP_VERSION", "2")
    monkeypatch.setenv("FSDP_AUTO_WRAP_POLICY", "WRAP_ALL")
    pipe, _ = made()
    with pytest.raises(StageError, match="the launcher's FSDP settings: Invalid auto wrap policy"):
        FsdpPart(pipe, "encoder", TUNED, main=True)
