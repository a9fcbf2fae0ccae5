"""A part whose optimizer DeepSpeed spreads over processes learns what it learns in one, each with its piece of it."""

from __future__ import annotations

import gc

import pytest
import torch
from run.launching import launched
from run.zero import ZERO, imported, needs_deepspeed
from train.little_encoder import SETTINGS, made, step

from pivotune.pipeline.launch import begin_processes
from pivotune.pipeline.train.engine import Place
from pivotune.pipeline.train.engine_trainer import EngineTrainer
from pivotune.pipeline.train.weights import WeightTrainer

pytestmark = needs_deepspeed


@pytest.fixture(autouse=True, scope="module")
def _ready():
    imported()


def trainer_of(rank, pipe, weights):
    processes = begin_processes("cpu")
    return EngineTrainer("finetune.encoder", weights, SETTINGS, Place(pipe, "encoder", processes.main), text=True)


def values_of(weights):
    return {name: weight.detach().clone() for name, weight in weights.items()}


@pytest.mark.parametrize(("stage", "dtype"), [("2", torch.float32), ("1", torch.float32), ("2", torch.bfloat16)])
def test_an_engine_learns_what_the_part_would(tmp_path, stage, dtype):
    """The second step is over two batches of one example each; the third goes on from a state of one process."""
    pipe, weights = made(dtype)
    alone = WeightTrainer("finetune.encoder", weights, SETTINGS, text=True)
    norms, halves = [], [slice(0, 1), slice(1, 2)]
    for number in range(2):
        norms.append(step(pipe, alone, number, [slice(None)] * (1 + number)))
    torch.save(alone.state(), tmp_path / "state.pt")
    norms.append(step(pipe, alone, 2))
    state = alone.state()
    alone.finish()

    def work(rank):
        pipe, weights = made(dtype)
        part = pipe.encoder
        trainer = trainer_of(rank, pipe, weights)
        norms = [step(pipe, trainer, number, [halves[rank]] * (1 + number)) for number in range(2)]
        shown = values_of(weights)
        with trainer.averaged():
            assert pipe.encoder is part
            assert not any(torch.equal(weight, shown[name]) for name, weight in weights.items())
        assert all(torch.equal(weight, shown[name]) for name, weight in weights.items())
        kept = trainer.state()
        step(pipe, trainer, 2, [halves[rank]])
        trainer.restore(torch.load(tmp_path / "state.pt", weights_only=False))
        norms.append(step(pipe, trainer, 2, [halves[rank]]))
        flat, told = trainer.twin.flat, trainer.state()
        held = [
            flat,
            *(one for one in trainer.optimizer.state[flat].values() if one.dim()),
            trainer.averages[""].shadow,
        ]
        trainer.finish()
        assert "forward" not in vars(part)
        assert not any(vars(weight) for weight in weights.values())
        torch.save((norms, sum(one.numel() for one in held), kept, told, values_of(weights)), tmp_path / f"{rank}.pt")

    ended = launched(tmp_path, work, 2, ZERO | {"ACCELERATE_DEEPSPEED_ZERO_STAGE": stage})
    assert ended.codes == [0, 0], ended.said
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=False) for rank in range(2)]
    close = {"rtol": 1e-5, "atol": 1e-6} if dtype == torch.float32 else {"rtol": 0.05, "atol": 0.01}
    for theirs, held, _, _, trained in found:
        torch.testing.assert_close(theirs, norms, **close)
        torch.testing.assert_close(trained, values_of(weights), **close)
        assert held <= (sum(weight.numel() for weight in weights.values()) * 4 + 64) // 2  # value, moments, average
    before = torch.load(tmp_path / "state.pt", weights_only=False)
    for kept, there in ((found[0][2], before), (found[0][3], state)):
        torch.testing.assert_close(kept.tensors, there.tensors, **close)
        assert kept.values == there.values
    assert not found[1][2].tensors


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_step_that_is_not_finite_can_be_left_out(tmp_path, dtype):
    def work(rank):
        pipe, weights = made(dtype)
        trainer = trainer_of(rank, pipe, weights)
        step(pipe, trainer, 0)
        shown = values_of(weights)
        for factor, bad in ((float("nan"), True), (1.0, False)):
            trainer.before_backward(last=True)
            (pipe.encoder(torch.arange(4)).sum() * (factor if rank == 1 else 1.0)).backward()
            assert (trainer.gradient_norm(1.0) == float("inf")) == bad
            trainer.clear()
        assert all(torch.equal(weight, shown[name]) for name, weight in weights.items())
        fresh, same = made(dtype)
        alone = WeightTrainer("finetune.encoder", same, SETTINGS, text=True)
        for number in range(2):
            norm = step(fresh, alone, number, loss=lambda values: 2 * values.square().sum())
        assert step(pipe, trainer, 1) == pytest.approx(norm, rel=1e-5 if dtype == torch.float32 else 0.02)

    ended = launched(tmp_path, work, 2, ZERO)
    assert ended.codes == [0, 0], ended.said


def taken(trainer, keys, *, averages):
    """What the trainer holds of some weights and their averages when it has taken these values."""
    values = {key: torch.full_like(trainer.parameters[key], 2.0, dtype=torch.float32) for key in keys}
    kept = {key: {"shadow": one + 1, "counts": torch.tensor([4.0])} for key, one in values.items()}
    trainer.take(values, kept if averages else {})
    tensors = trainer.state().tensors
    return {name: float(tensors[name].mean()) for key in keys for name in tensors if f".{key}" in name}


def test_an_engine_takes_values_and_averages_as_the_part_would(tmp_path):
    _, weights = made(torch.float32)
    keys = list(weights)
    alone = WeightTrainer("finetune.encoder", weights, SETTINGS, text=True)
    meant = [taken(alone, keys, averages=True), taken(alone, keys, averages=False)]
    assert {number for name, number in meant[0].items() if name.startswith("averages")} == {3.0, 4.0}
    assert {number for name, number in meant[1].items() if name.endswith("shadow")} == {2.0}

    def work(rank):
        pipe, weights = made(torch.float32)
        trainer = trainer_of(rank, pipe, weights)
        found = [taken(trainer, keys, averages=True), taken(trainer, keys, averages=False)]
        assert rank != 0 or found == meant, (found, meant)

    ended = launched(tmp_path, work, 2, ZERO)
    assert ended.codes == [0, 0], ended.said


def test_weights_that_only_weight_decay_moves_are_said(tmp_path):
    """In one process they stand still: no picture depends on them, but the files differ."""

    def work(rank):
        pipe, weights = made()
        first = [name for name in weights if name.startswith("layers.0")]
        pipe.encoder.forward = lambda ids: pipe.encoder.layers[0](pipe.encoder.table(ids))
        trainer = trainer_of(rank, pipe, weights)
        step(pipe, trainer, 0)
        assert trainer.twin.unreached == weights.keys() - set(first)
        (said,) = trainer.remarks()
        assert said.startswith("finetune.encoder: no gradient reaches 2 of its 3 weights, layers.1.one.bias among them")
        trainer.optimizer.param_groups[0]["weight_decay"] = 0.0
        assert trainer.remarks() == ()
        trainer.finish()
        assert not any(weight._backward_hooks for weight in weights.values())

    assert launched(tmp_path, work, 2, ZERO).codes == [0, 0]


def test_an_engine_that_has_ended_lets_go_of_the_part(tmp_path):
    """DeepSpeed's engines end once more when they are collected, whenever that is."""

    def work(rank):
        pipe, weights = made()
        before = trainer_of(rank, pipe, weights)
        step(pipe, before, 0)
        before.finish()
        now = trainer_of(rank, pipe, weights)
        del before
        gc.collect()
        now.take({name: torch.full_like(weight, 0.5) for name, weight in weights.items()}, {})
        assert all(bool((weight == 0.5).all()) for weight in weights.values())
        now.finish()

    assert launched(tmp_path, work, 2, ZERO).codes == [0, 0]
