"""Whether all processes of a run train the same values: they start alike and take the same steps, so they must."""

from __future__ import annotations

from ..errors import StageError
from ..train.setup import weights_of
from ..train.training import Training
from .hashes import tensor_hash


def hold_equal(training: Training) -> None:
    """StageError when words or weights are not bit for bit the same in every process."""
    if training.processes.count == 1:
        return
    found = training.processes.gathered(_digests(training))
    for name, digest in found[0].items():
        other = next((number for number, one in enumerate(found) if one.get(name) != digest), None)
        if other is not None:
            raise StageError(
                f"{name} is not the same in process {other} as in the main one: are the model's files, the versions "
                "and the kind of device the same on every machine?"
            )


def share_note(training: Training) -> str:
    """How a step's pictures are shared out, for the manifest."""
    count, step = training.processes.count, training.dataset.order.size * training.accumulation
    note = f"{count} processes: a step's {step} pictures are shared out, at most {-(-step // count)} to each"
    if step < count:
        note += f"; {count - step} have none: raise batch_size or gradient_accumulation"
    spread = [thing.name for thing in training.things if thing.spread]
    return f"{note}; each has its share alone of what moves {', '.join(spread)}" if spread else note


def _digests(training: Training) -> dict[str, str]:
    held = {f"the table of words of {key}": rows.values for key, rows in training.injection.rows.items()}
    held |= weights_of([thing for thing in training.things if not thing.spread])
    return {name: tensor_hash(tensor) for name, tensor in held.items()}
