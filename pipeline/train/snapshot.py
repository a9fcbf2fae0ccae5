"""A train stage between two steps as tensors and JSON, and back: what a checkpoint holds of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from ..errors import StageError
from .loop import Training
from .packing import copy_into, pack, unpack
from .trained import State

_ROWS, _LOOSE, _THINGS, _GUARD = "rows/", "loose/", "things/", "guard/"


def take_snapshot(training: Training, moved: Mapping[str, nn.Parameter]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Copies on the CPU of all that has moved: rows of all words, what is trained now, what earlier stages `moved`."""
    tensors = {f"{_ROWS}{key}": rows.values.clone() for key, rows in training.injection.rows.items()}
    tensors |= {f"{_LOOSE}{name}": parameter.detach().clone() for name, parameter in _loose(training, moved).items()}
    values = {}
    for thing in training.things:
        state = thing.state()
        tensors |= {f"{_THINGS}{thing.name}/{name}": tensor for name, tensor in state.tensors.items()}
        values[thing.name] = state.values
    spans = {
        key: {word: [span.start, span.stop] for word, span in rows.spans.items()}
        for key, rows in training.injection.rows.items()
    }
    facts = {"things": values, "scale": dict(vars(training.scale)), "spans": spans}
    if training.guard is not None:
        state = pack(training.guard.state())
        tensors |= {f"{_GUARD}{name}": tensor for name, tensor in state.tensors.items()}
        facts["guard"] = state.values
    return {name: tensor.cpu() for name, tensor in tensors.items()}, facts


def restore_snapshot(
    training: Training, moved: Mapping[str, nn.Parameter], tensors: Mapping[str, Tensor], facts: Mapping[str, Any]
) -> None:
    """Put everything back as `take_snapshot` found it. Raises StageError when it does not fit."""
    for key, rows in training.injection.rows.items():
        copy_into(rows.values, _need(tensors, f"{_ROWS}{key}"), f"the words' rows in {key}")
    for name, parameter in _loose(training, moved).items():
        copy_into(parameter, _need(tensors, f"{_LOOSE}{name}"), name)
    for thing in training.things:
        if thing.name not in facts["things"]:
            raise StageError(f"the checkpoint has nothing of {thing.name}")
        start = f"{_THINGS}{thing.name}/"
        mine = {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}
        thing.restore(State(mine, facts["things"][thing.name]))
    if training.guard is not None and "guard" in facts:
        mine = {name.removeprefix(_GUARD): tensor for name, tensor in tensors.items() if name.startswith(_GUARD)}
        training.guard.restore(unpack(State(mine, facts["guard"])))
    for name, value in facts["scale"].items():
        setattr(training.scale, name, value)


def _loose(training: Training, moved: Mapping[str, nn.Parameter]) -> dict[str, nn.Parameter]:
    """Weights that an earlier stage trained and that this one holds still."""
    now = {id(weight) for thing in training.things for weight in getattr(thing, "parameters", {}).values()}
    return {name: weight for name, weight in moved.items() if id(weight) not in now}


def _need(tensors: Mapping[str, Tensor], name: str) -> Tensor:
    try:
        return tensors[name]
    except KeyError:
        raise StageError(f"the checkpoint has no {name}") from None
