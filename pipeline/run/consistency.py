"""Consistency checks: the same inputs and values in every process, unchanged files since the run started."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..data.captions import read_concept
from ..data.examples import Example
from ..distributed import Processes
from ..errors import StageError
from ..files import sha256, shown_path, tensor_hash
from ..recipe.model import Recipe
from ..recipe.optimizers import OPTIMIZERS
from ..recipe.options import TrainOptions
from ..text import count_of, first_few, first_lines
from ..train.setup import Trainables, Training
from .checkpoints import FOLDER, Checkpoint, newest_checkpoint, read_checkpoint

LISTED = 5  # differences or files in a message


def require_same_inputs(inputs: Mapping[str, Any], processes: Processes) -> None:
    """StageError when a process (on another machine) has another model, other images or other versions."""
    main, *others = processes.gather(inputs)
    if not others:
        return
    from .diff import input_differences

    for number, other in enumerate(others, 1):
        found = input_differences(main, other)
        if found:
            listed = "; ".join(first_lines([str(one) for one in found], LISTED))
            raise StageError(f"process {number} has other inputs than the main process: {listed}")


def common_checkpoint(folder: Path, processes: Processes, progress: Callable[[str], None]) -> Checkpoint | None:
    """The newest readable checkpoint of the main process, in every process.

    Raises StageError when one of them cannot read the file.
    """
    found = newest_checkpoint(folder, progress) if processes.main else None
    name = processes.from_main(lambda: found.name if found else None)
    if name is None or processes.main:
        with processes.together():
            return found
    with processes.together():
        try:
            return read_checkpoint(folder / FOLDER / name)
        except StageError as error:
            raise StageError(f"{error}; with several machines the run's folder must be on a shared disk") from error


def require_equal_values(training: Training) -> None:
    """StageError when embeddings or weights are not identical in every process."""
    if training.processes.count == 1:
        return
    found = training.processes.gather(_digests(training))
    for name, digest in found[0].items():
        other = next((number for number, one in enumerate(found) if one.get(name) != digest), None)
        if other is not None:
            raise StageError(
                f"{name}: not the same in process {other} as in the main process; use the same model files, versions "
                "and kind of device on every machine"
            )


def sharding_note(training: Training) -> str:
    """How a step's images are distributed, for the manifest."""
    count, step = training.processes.count, training.dataset.order.size * training.accumulation
    note = f"{count} processes: at most {-(-step // count)} of a step's {count_of(step, 'image')} for each"
    if step < count:
        note += f"; {count - step} get none: increase batch_size or gradient_accumulation"
    spread = [trainable.name for trainable in training.trainables if trainable.sharded]
    return f"{note}; sharded: {', '.join(spread)}" if spread else note


def _digests(training: Training) -> dict[str, str]:
    replicated = Trainables(None, tuple(one for one in training.trainables.weights if not one.sharded))
    tensors = {f"the embeddings for {key}": rows.values for key, rows in training.injection.rows.items()}
    tensors |= replicated.parameters
    return {name: tensor_hash(tensor) for name, tensor in tensors.items()}


def require_unchanged_data(recipe: Recipe, examples: Sequence[Example], known: Mapping[str, str]) -> None:
    """StageError when an image, mask or caption file has changed since the run started.

    `known` are the manifest's hashes of the files. Images were hashed when `examples` were read.
    """
    base = recipe.path.parent
    now = {shown_path(example.image, base): example.content.split("+")[0] for example in examples}
    for example in examples:
        if example.mask is not None:
            now[shown_path(example.mask, base)] = example.content.split("+")[1]
    for concept in recipe.all_concepts:
        now |= {shown_path(path, base): sha256(path) for path in read_concept(concept).files}
    changed = sorted({*now, *known} - {name for name, digest in now.items() if known.get(name) == digest})
    if changed:
        raise StageError(
            f"changed since the run started: {first_few(changed, LISTED)}; restore the files and run the same "
            "command again, or start over with --fresh"
        )


def require_one_process(recipe: Recipe, count: int) -> None:
    """StageError for validation in several processes."""
    if recipe.validation is not None and count > 1:
        raise StageError(f"[validation] is not supported with {count} processes; remove it, or launch one process")


def require_shardable(recipe: Recipe, *, sharding: bool) -> None:
    """StageError for keys that cannot be used where the launcher asks for FSDP2 (`sharding`)."""
    for index, options in recipe.stages_with(TrainOptions) if sharding else ():
        try:
            _require_shardable(options)
        except StageError as error:
            raise StageError(f"stage {index + 1} (train): {error}") from None


def _require_shardable(options: TrainOptions) -> None:
    for table in options.finetune:
        kind, usable = table.optimizer.kind, [name for name, row in OPTIMIZERS.items() if row.elementwise]
        if kind not in usable:
            raise StageError(
                f"finetune of {', '.join(table.parts)}: the optimizer {kind} cannot be used with FSDP, as it needs "
                f"whole weights, not shards; use {' or '.join(usable)}, or launch without FSDP"
            )
    if options.finetune and options.compile:
        raise StageError("compile = true cannot be used with a fine-tune that FSDP shards; remove one of them")
    if options.finetune and options.locality:
        raise StageError("locality cannot be used with a fine-tune that FSDP shards; remove one of them")
