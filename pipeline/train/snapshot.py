"""The state of a train stage between two steps as tensors and JSON, for checkpoints, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from ..errors import StageError
from .embeddings import EmbeddingTrainer
from .packing import copied, copy_into, pack, unpack
from .setup import Training
from .trainable import State

Shadow = Mapping[str, Tensor]  # EMA weights and their step counts (see ema.Average)
_ROWS, _LOOSE, _TRAINABLES, _GUARD, _VALIDATION = "rows/", "loose/", "trainables/", "guard/", "validation/"


def take_snapshot(
    training: Training, trained_weights: Mapping[str, nn.Parameter]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Copies on the CPU of everything that was trained: rows of all embeddings, what is trained now, and the weights
    that earlier stages trained (`trained_weights`).

    With several processes all must call it; the main one gets the copies.
    """
    if not training.processes.main:
        for trainable in training.trainables:
            if trainable.sharded:
                trainable.state()
        return {}, {}
    tensors = {f"{_LOOSE}{name}": copied(parameter) for name, parameter in _loose(training, trained_weights).items()}
    if training.embeddings is None:  # where embeddings are trained, their state has the rows of all embeddings
        tensors |= {f"{_ROWS}{key}": copied(rows.values) for key, rows in training.injection.rows.items()}
    values = {}
    for trainable in training.trainables:
        state = trainable.state()
        tensors |= {f"{_TRAINABLES}{trainable.name}/{name}": tensor for name, tensor in state.tensors.items()}
        values[trainable.name] = state.values
    spans = {
        key: {embedding: [span.start, span.stop] for embedding, span in rows.spans.items()}
        for key, rows in training.injection.rows.items()
    }
    outputs = {key: sorted(rows.outputs) for key, rows in training.injection.rows.items()}
    facts = {"outputs": outputs, "trainables": values, "scale": dict(vars(training.scale)), "spans": spans}
    if training.guard is not None:
        state = pack(training.guard.state())
        tensors |= {f"{_GUARD}{name}": tensor for name, tensor in state.tensors.items()}
        facts["guard"] = state.values
    if training.validation is not None:
        state = training.validation.state()
        tensors |= {f"{_VALIDATION}{name}": tensor for name, tensor in state.tensors.items()}
        facts["validation"] = state.values
    return tensors, facts


def restore_snapshot(
    training: Training,
    trained_weights: Mapping[str, nn.Parameter],
    tensors: Mapping[str, Tensor],
    facts: Mapping[str, Any],
) -> None:
    """Restore what `take_snapshot` gave. Raises StageError when it does not fit."""
    if training.embeddings is None:
        for key, rows in training.injection.rows.items():
            copy_into(rows.values, _need(tensors, f"{_ROWS}{key}"), f"the embeddings' rows in {key}")
    for name, parameter in _loose(training, trained_weights).items():
        copy_into(parameter, _need(tensors, f"{_LOOSE}{name}"), name)
    for trainable in training.trainables:
        if trainable.name not in facts["trainables"]:
            raise StageError(f"the checkpoint has nothing of {trainable.name}")
        trainable.restore(
            State(_under(tensors, f"{_TRAINABLES}{trainable.name}/"), facts["trainables"][trainable.name])
        )
    if training.guard is not None and "guard" in facts:
        training.guard.restore(unpack(State(_under(tensors, _GUARD), facts["guard"])))
    if training.validation is not None and "validation" in facts:
        training.validation.restore(State(_under(tensors, _VALIDATION), facts["validation"]), training)
    for name, value in facts["scale"].items():
        setattr(training.scale, name, value)


def stored_rows(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Encoder key to the rows of all embeddings, whether they were trained in the snapshot's stage or not."""
    return _under(tensors, _ROWS) | _under(tensors, f"{_TRAINABLES}{EmbeddingTrainer.name}/rows.")


def stored_weights(tensors: Mapping[str, Tensor], trainable: str) -> dict[str, Tensor]:
    """A trainable's weights by name, whether trained in the snapshot's stage or an earlier one."""
    return _under(tensors, f"{_TRAINABLES}{trainable}/weights.") | _under(tensors, f"{_LOOSE}{trainable}/")


def stored_averages(tensors: Mapping[str, Tensor], trainable: str) -> Mapping[str, Shadow]:
    """The EMA weights of a trainable: of weights by name, of embeddings by encoder."""
    found: dict[str, dict[str, Tensor]] = {}
    for name, tensor in _under(tensors, f"{_TRAINABLES}{trainable}/averages.").items():
        of, _, part = name.rpartition(".")
        found.setdefault(of, {})[part] = tensor
    return found


def _under(tensors: Mapping[str, Tensor], start: str) -> dict[str, Tensor]:
    """The tensors whose names start with this, by the rest of their names."""
    return {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}


def _loose(training: Training, trained_weights: Mapping[str, nn.Parameter]) -> dict[str, nn.Parameter]:
    """Weights that an earlier stage trained and that are frozen in this one."""
    now = {id(weight) for weight in training.trainables.parameters.values()}
    return {name: weight for name, weight in trained_weights.items() if id(weight) not in now}


def _need(tensors: Mapping[str, Tensor], name: str) -> Tensor:
    try:
        return tensors[name]
    except KeyError:
        raise StageError(f"the checkpoint has no {name}") from None
