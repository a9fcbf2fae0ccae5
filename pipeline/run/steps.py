"""The steps of a train stage within a run: what goes on beside them, their metrics, and how they end."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from ...converters.embedding import Contents
from ..errors import StageError
from ..export.finished import Finished
from ..progress import progress
from ..train.guard import Halted, NotFinite
from ..train.loop import train_steps
from ..train.lora import freeze_lora
from ..train.parts import part_modules
from ..train.training import Training
from ..train.weights import WeightTrainer
from ..train.word_trainer import WordTrainer
from ..words.gauge import gauge
from .agreement import hold_equal, share_note
from .beside import After, Options, beside
from .contents import as_left
from .resume import go_on, keep_on, steps_left
from .saves import Write
from .state import Run
from .stopping import Stopped

AVERAGED = "norms and ways of words in the metrics are those of the vectors that take the steps; files have averages"

FEW = 5  # words that are named


def run_steps(
    run: Run, training: Training, contents: Contents, finished: Finished, *, log_every: int, watch: Options,
    save: Options, write: Write,
) -> None:  # fmt: skip
    """The steps, with their metrics; whatever ends them, `run.kept` is what the last good one left.

    `finished` writes words that stop, `write` what `save` asks for. Raises StageError when a word was in no batch.
    """
    first, seconds = go_on(run, training)
    hold_equal(training)
    everywhere = False
    try:
        with beside(run, training, watch, save, partial(as_left, run, contents), write) as after:
            _follow(run, training, log_every, after, finished, first, seconds)
            hold_equal(training)
        if training.guard is not None:
            training.guard.close()
        everywhere = True
        _all_seen(training.words)
        _say_short(run, training.words)
    except (Halted, NotFinite, Stopped):
        everywhere = True
        raise
    finally:
        _close(run, training, everywhere=everywhere)
        for module in part_modules(run.model).values():
            freeze_lora(module)
        run.kept = as_left(run, contents)
    if training.scale.overflows:
        run.warnings.append(
            f"{training.scale.overflows} steps overflowed float16 and were repeated with a smaller scale"
        )
    if training.words is not None:
        run.stopped_at.update(training.words.stopped_at)
        run.reached |= training.words.reached


def _close(run: Run, training: Training, *, everywhere: bool) -> None:
    """What is kept of a stage, of one that failed too, is what would be used: averages where there are any.

    Where it may not have ended `everywhere`, other processes cannot be asked for what is spread over them.
    """
    for thing in training.things:
        if everywhere or not thing.spread:
            thing.finish()
        elif isinstance(thing, WeightTrainer) and thing.twin is not None:
            thing.twin.leave()
            run.finetuned.discard(thing.twin.name)
            run.warnings.append(f"what {thing.name} has learnt is in the last checkpoint alone")


def _follow(
    run: Run, training: Training, log_every: int, after: After, finished: Finished, first: int, before: float
) -> None:
    """Run the steps but the `first` ones, which took `before` seconds: how far they are, and their metrics written."""
    starts = {word.name: word for word in run.start.embeddings}
    guard = training.guard
    if guard is not None:
        guard.hold()  # a checkpoint that was written for it has what the run is to stop for
    if run.processes.count > 1:
        run.notes.append(share_note(training))
    if training.words is not None and training.words.states.averaged:
        run.notes.append(AVERAGED)
    with progress(training.steps, "train", "step", initial=first, shown=run.bar) as done:
        for row in _steps(run, training, first, before):
            number, active = row["step"], row.pop("active")
            if number % log_every == 0 or number == training.steps:
                gauged = active if training.words is not None else ()
                row["words"] = {name: gauge(run.model.encoders, training.injection, starts[name]) for name in gauged}
            after(row, before)
            _say_idle(run, training, number)
            with run.processes.together():
                if run.processes.main:
                    finished.write(training.words)
                    run.metrics.write({"stage": run.stage + 1, **row})
            done(f"loss {row['loss']:.4f}")
            keep_on(run, training, number, before, row["seconds"], now=guard is not None and guard.stops)
            if number == training.steps:
                run.keeper.asked.steps = steps_left(run, run.stage + 1)
            if guard is not None:
                guard.hold()
            before = row["seconds"]


def _say_idle(run: Run, training: Training, number: int) -> None:
    """Say once that the steps after this one train nothing."""
    words = training.words
    if words is None or len(training.things) > 1 or len(words.stopped_at) < len(words.words):
        return
    text = f"all words have had their training after step {max(words.stopped_at.values())} (stop_after)"
    text += f": the steps from there to {training.steps} train nothing"
    if number < training.steps and text not in run.warnings:
        run.warn(text)


def _say_short(run: Run, trainer: WordTrainer | None) -> None:
    """Say which words have not had their own steps when the stage's are over.

    After the last checkpoint, and from the counts in it: whoever goes on from there says the same, and with more steps
    what is true then.
    """
    short = trainer.stops.short() if trainer is not None else []
    if trainer is None or not short:
        return
    some = ", ".join(f"{word} has {had} of {wanted:.9g}" for word, had, wanted in short[:FEW])
    some += f" and {len(short) - FEW} more" if len(short) > FEW else ""
    total = len(trainer.stops.counts)
    their = "its" if len(short) == 1 else "their"
    run.warn(f"{len(short)} of {total} words did not get {their} own steps (stop_after): {some}; raise steps")


def _steps(run: Run, training: Training, first: int, seconds: float) -> Iterator[dict[str, Any]]:
    """The steps one by one; before a loss that is not finite ends them, a checkpoint of the last good one."""
    done = first
    try:
        for row in train_steps(training, first, seconds):
            done, seconds = row["step"], row["seconds"]
            yield row
    except NotFinite:
        if done:
            keep_on(run, training, done, seconds, seconds, now=True)
        raise


def _all_seen(trainer: WordTrainer | None) -> None:
    missed = sorted(trainer.words.keys() - trainer.reached) if trainer is not None else []
    if missed:
        names = ", ".join(map(repr, missed[:5])) + (f" and {len(missed) - 5} more" if len(missed) > 5 else "")
        raise StageError(f"in no batch of this stage: {names}; train for more steps, or balance the concepts")
