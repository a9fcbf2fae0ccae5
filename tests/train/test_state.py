"""What a checkpoint holds of a trained thing is enough to continue as if nothing had happened."""

import json

import pytest
import torch
from projects import make_project, run_project

from pivotune.pipeline.errors import StageError
from pivotune.pipeline.recipe.load import load_recipe
from pivotune.pipeline.train import loop
from pivotune.pipeline.train.packing import pack, unpack
from pivotune.pipeline.train.trainable import State


def test_a_tree_is_packed_and_unpacked():
    tree = {"a": [torch.arange(3), (1, 2.5)], 0: {"b": None, "inf": float("inf")}, "true": True}
    packed = pack(tree)
    again = unpack(State(packed.tensors, json.loads(json.dumps(packed.values))))
    assert list(packed.tensors) == ["a.0"]
    assert torch.equal(again["a"][0], torch.arange(3))
    assert again["a"][1] == (1, 2.5)
    assert (again[0], again["true"]) == (tree[0], True)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_copies_are_on_the_cpu_and_optional(device):
    """A second set of all that moves may not fit beside the first."""
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA accelerator here")
    moves = torch.ones(3, device=device)
    (copied,), (same,) = (pack([moves], **how).tensors.values() for how in ({}, {"copy": lambda one: one}))
    moves.zero_()
    assert (copied.device.type, copied.tolist()) == ("cpu", [1.0, 1.0, 1.0])
    assert same is moves


def test_values_that_are_not_json_are_an_error():
    with pytest.raises(StageError, match=r"has a function at a\.b"):
        pack({"a": {"b": pack}})


def trained(tmp_path, monkeypatch, train, name, interrupt):
    """The states after five steps; with `interrupt` all things are put back to what they were after the third."""
    recipe = load_recipe(make_project(tmp_path / name, train=train), ["train.steps=5"])
    one_step, kept, ends = loop.one_step, {}, {}

    def stepped(training, clock):
        if interrupt and clock.step == 3:
            kept.update({trainable.name: trainable.state() for trainable in training.trainables})
            for step in (3, 4):
                one_step(training, type(clock)(step, clock.steps, clock.steps_per_epoch, clock.seconds))
            for trainable in training.trainables:
                facts = json.loads(json.dumps(kept[trainable.name].values))
                trainable.restore(State(kept[trainable.name].tensors, facts))
        row = one_step(training, clock)
        if clock.step == 4:
            ends.update({trainable.name: trainable.state() for trainable in training.trainables})
        return row

    monkeypatch.setattr(loop, "one_step", stepped)
    run_project(recipe, tmp_path / f"run-{name}")
    monkeypatch.setattr(loop, "one_step", one_step)
    return ends


def test_restoring_a_state_gives_the_same_training(tmp_path, monkeypatch):
    for name in ("whole", "again"):
        (tmp_path / name).mkdir()
    train = "lora = { rank = 2, learning_rate = 0.05 }"
    whole = trained(tmp_path, monkeypatch, train, "whole", False)
    again = trained(tmp_path, monkeypatch, train, "again", True)
    assert whole.keys() == again.keys() == {"embeddings", "lora.denoiser"}
    for name, state in whole.items():
        assert state.values == again[name].values
        assert state.tensors.keys() == again[name].tensors.keys()
        assert all(torch.equal(tensor, again[name].tensors[key]) for key, tensor in state.tensors.items())
