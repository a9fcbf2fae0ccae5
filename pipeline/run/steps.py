"""Embeddings and LoRA between the contents that stages hand on and the model that holds them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ...converters.embedding import Contents, Embedding
from ..embeddings.metrics import vector_metrics
from ..errors import StageError
from ..export.finished import Finished
from ..models.load import kohya_prefix, part_modules
from ..progress import progress
from ..recipe.options import TrainOptions
from ..tensors import to_raw, vectors_of_all
from ..train.embeddings import EmbeddingTrainer
from ..train.guard import Halted, NotFinite
from ..train.loop import train_steps
from ..train.lora import freeze_lora, has_lora, lora_tensors
from ..train.setup import Training
from .callbacks import After, Write, step_callbacks
from .consistency import require_equal_values, sharding_note
from .context import Run
from .resume import checkpoint_if_due, restore_training, steps_left
from .signals import Stopped


def load_into_model(run: Run, contents: Contents) -> None:
    """What an earlier stage changed (rescale) goes into the model."""
    for key, rows in run.need_injection().rows.items():
        vectors = vectors_of_all(contents.embeddings, key, rows.values.shape[1])
        for embedding, own in zip(contents.embeddings, vectors, strict=True):
            rows.of(embedding.name).copy_(own)


def start_norms(run: Run) -> dict[str, Tensor]:
    """Encoder key to the norms of the rows as the run began, (rows,), in the order of the injected rows."""
    norms = {}
    for key, rows in run.need_injection().rows.items():
        began = torch.cat(vectors_of_all(run.start.embeddings, key, rows.values.shape[1]))
        norms[key] = began.norm(dim=1).to(rows.values.device)
    return norms


def read_from_model(run: Run, contents: Contents) -> Contents:
    """The contents with embeddings and LoRA as the model has them now."""
    rest = contents.rest
    for part, module in part_modules(run.model).items():
        if has_lora(module):
            own = lora_tensors(module, kohya_prefix(run.model, part))
            rest = rest | {name: to_raw(tensor) for name, tensor in own.items()}
    return replace(contents, embeddings=tuple(_vectors(run, embedding) for embedding in contents.embeddings), rest=rest)


def _vectors(run: Run, embedding: Embedding) -> Embedding:
    rows = run.need_injection().rows
    return replace(embedding, vectors={key: to_raw(rows[key].of(embedding.name)) for key in embedding.vectors})


AVERAGED = (
    "norms and ways of embeddings in the metrics are those of the vectors that take the steps; files have averages"
)

FEW = 5  # embeddings that are named


def run_steps(
    run: Run, training: Training, contents: Contents, finished: Finished, options: TrainOptions, *, write: Write
) -> None:
    """The steps, with their metrics; whatever ends them, `run.kept` is what the last good one left.

    `finished` writes embeddings that stop, `write` what `save` asks for. Raises StageError when an embedding was in no
    batch.
    """
    first, seconds = restore_training(run, training)
    require_equal_values(training)
    everywhere = False
    try:
        with step_callbacks(run, training, options, partial(read_from_model, run, contents), write) as after:
            _follow(run, training, options.log_every, after, finished, first, seconds)
            require_equal_values(training)
        if training.guard is not None:
            training.guard.close()
        everywhere = True
        _all_seen(training.embeddings)
        _say_short(run, training.embeddings)
    except (Halted, NotFinite, Stopped):
        everywhere = True
        raise
    finally:
        _close(run, training, everywhere=everywhere)
        for module in part_modules(run.model).values():
            freeze_lora(module)
        run.kept = read_from_model(run, contents)
    if training.scale.overflows:
        run.warnings.append(
            f"{training.scale.overflows} steps overflowed float16 and were repeated with a smaller scale"
        )
    if training.embeddings is not None:
        run.stopped_at.update(training.embeddings.stopped_at)
        run.reached |= training.embeddings.reached


def _close(run: Run, training: Training, *, everywhere: bool) -> None:
    """What is kept of a stage, of one that failed too, is what would be used: averages where there are any.

    Where it may not have ended `everywhere`, other processes cannot be asked for what is spread over them.
    """
    for trainable in training.trainables:
        if everywhere or not trainable.sharded:
            trainable.finish()
    for trainer in training.trainables.weights:
        if not everywhere and trainer.twin is not None:
            trainer.twin.leave()
            run.finetuned.discard(trainer.twin.name)
            run.warnings.append(f"what {trainer.name} has learnt is in the last checkpoint alone")


def _follow(
    run: Run, training: Training, log_every: int, after: After, finished: Finished, first: int, before: float
) -> None:
    """Run the steps but the `first` ones, which took `before` seconds: how far they are, and their metrics written."""
    starts = {embedding.name: embedding for embedding in run.start.embeddings}
    guard = training.guard
    if guard is not None:
        guard.hold()  # a checkpoint that was written for it has what the run is to stop for
    if run.processes.count > 1:
        run.notes.append(sharding_note(training))
    if training.embeddings is not None and training.embeddings.states.averaged:
        run.notes.append(AVERAGED)
    with progress(training.steps, "train", "step", initial=first, shown=run.bar) as done:
        for row in _steps(run, training, first, before):
            number, active = row["step"], row.pop("active")
            if number % log_every == 0 or number == training.steps:
                gauged = active if training.embeddings is not None else ()
                row["embeddings"] = {
                    name: vector_metrics(run.model.encoders, training.injection, starts[name]) for name in gauged
                }
            after(row, before)
            _say_idle(run, training, number)
            with run.processes.together():
                if run.processes.main:
                    finished.write(training.embeddings)
                    run.metrics.write({"stage": run.stage + 1, **row})
            done(f"loss {row['loss']:.4f}")
            checkpoint_if_due(run, training, number, before, row["seconds"], now=guard is not None and guard.stops)
            if number == training.steps:
                run.checkpointer.asked.steps = steps_left(run, run.stage + 1)
            if guard is not None:
                guard.hold()
            before = row["seconds"]


def _say_idle(run: Run, training: Training, number: int) -> None:
    """Say once that the steps after this one train nothing."""
    embeddings = training.embeddings
    if embeddings is None or training.trainables.weights or len(embeddings.stopped_at) < len(embeddings.embeddings):
        return
    text = f"all embeddings have had their training after step {max(embeddings.stopped_at.values())} (stop_after)"
    text += f": the steps from there to {training.steps} train nothing"
    if number < training.steps and text not in run.warnings:
        run.warn(text)


def _say_short(run: Run, trainer: EmbeddingTrainer | None) -> None:
    """Say which embeddings have not had their own steps when the stage's are over.

    After the last checkpoint, and from the counts in it: whoever goes on from there says the same, and with more steps
    what is true then.
    """
    short = trainer.stops.short() if trainer is not None else []
    if trainer is None or not short:
        return
    some = ", ".join(f"{embedding} has {had} of {wanted:.9g}" for embedding, had, wanted in short[:FEW])
    some += f" and {len(short) - FEW} more" if len(short) > FEW else ""
    total = len(trainer.stops.counts)
    their = "its" if len(short) == 1 else "their"
    run.warn(f"{len(short)} of {total} embeddings did not get {their} own steps (stop_after): {some}; raise steps")


def _steps(run: Run, training: Training, first: int, seconds: float) -> Iterator[dict[str, Any]]:
    """The steps one by one; before a loss that is not finite ends them, a checkpoint of the last good one."""
    done = first
    try:
        for row in train_steps(training, first, seconds):
            done, seconds = row["step"], row["seconds"]
            yield row
    except NotFinite:
        if done:
            checkpoint_if_due(run, training, done, seconds, seconds, now=True)
        raise


def _all_seen(trainer: EmbeddingTrainer | None) -> None:
    missed = sorted(trainer.embeddings.keys() - trainer.reached) if trainer is not None else []
    if missed:
        names = ", ".join(map(repr, missed[:5])) + (f" and {len(missed) - 5} more" if len(missed) > 5 else "")
        raise StageError(f"in no batch of this stage: {names}; train for more steps, or balance the concepts")
