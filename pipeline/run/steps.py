"""The steps of a train stage, with everything that follows each of them: metrics, samples, saves, checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ...converters.embedding import Contents, Embedding
from ..embeddings.injection import Injection
from ..embeddings.metrics import vector_metrics
from ..errors import StageError
from ..export.finished import Finished
from ..models.load import Model, kohya_prefix, part_modules
from ..progress import progress
from ..recipe.options import TrainOptions
from ..tensors import to_raw, vectors_of_all
from ..text import count_of, first_few
from ..train.embeddings import EmbeddingTrainer
from ..train.guard import Halted, NotFinite
from ..train.loop import train_steps
from ..train.lora import freeze_lora, has_lora, lora_tensors
from ..train.setup import Training
from .callbacks import After, ema_weights, random_state_kept, step_callbacks
from .consistency import require_equal_values, sharding_note
from .context import RunContext, RunState, warn
from .resume import checkpoint_if_due, has_steps_left, restore_training
from .signals import Stopped


def load_into_model(injection: Injection, contents: Contents) -> None:
    """Put the vectors into the model: an earlier stage (rescale) may have changed them."""
    for key, rows in injection.rows.items():
        vectors = vectors_of_all(contents.embeddings, key, rows.values.shape[1])
        for embedding, own in zip(contents.embeddings, vectors, strict=True):
            rows.of(embedding.name).copy_(own)


def initial_norms(injection: Injection, initial: Contents) -> dict[str, Tensor]:
    """Encoder key to the norms of the initial vectors, (rows,), in the order of the injected rows."""
    norms = {}
    for key, rows in injection.rows.items():
        vectors = torch.cat(vectors_of_all(initial.embeddings, key, rows.values.shape[1]))
        norms[key] = vectors.norm(dim=1).to(rows.values.device)
    return norms


def read_from_model(model: Model, injection: Injection, contents: Contents) -> Contents:
    """The contents with embeddings and LoRA as the model has them now."""

    def current(embedding: Embedding) -> Embedding:
        rows = injection.rows
        return replace(embedding, vectors={key: to_raw(rows[key].of(embedding.name)) for key in embedding.vectors})

    rest = contents.rest
    for part, module in part_modules(model).items():
        if has_lora(module):
            tensors = lora_tensors(module, kohya_prefix(model, part))
            rest = rest | {name: to_raw(tensor) for name, tensor in tensors.items()}
    return replace(contents, embeddings=tuple(current(embedding) for embedding in contents.embeddings), rest=rest)


EMA_NOTE = "metrics show the raw weights; exported files contain the EMA weights"


def run_steps(
    context: RunContext, state: RunState, training: Training, contents: Contents, finished: Finished,
    options: TrainOptions,
) -> None:  # fmt: skip
    """Train, write metrics, and do what `watch` and `save` ask for; `state.latest` is what the last good step left.

    `finished` exports embeddings that stop. Raises StageError when an embedding was never sampled.
    """
    first, seconds = restore_training(context, state, training)
    require_equal_values(training)
    current = partial(read_from_model, context.model, training.injection, contents)
    ended_together = False  # whether all processes come to the end of this block
    try:
        add_notes(context, state, training)
        with (
            step_callbacks(context, state, training, options, current) as after,
            progress(training.steps, "train", "step", initial=first, shown=context.bar) as show,
        ):
            recorder = StepRecorder(context, state, training, finished, options.log_every, after, show, first, seconds)
            for row in train_steps(training, first, seconds):
                recorder.record(row)
            require_equal_values(training)
        if training.guard is not None:
            training.guard.close()
        ended_together = True
        require_all_sampled(training.embeddings)
        warn_of_missing_steps(context, state, training.embeddings)
    except NotFinite:
        ended_together = True
        recorder.checkpoint_last_good()
        raise
    except (Halted, Stopped):
        ended_together = True
        raise
    finally:
        _close(state, training, ended_together=ended_together)
        for module in part_modules(context.model).values():
            freeze_lora(module)
        state.latest = current()
    if training.validation is not None:
        state.notes.append(training.validation.note)
        if training.validation.keep:
            training.validation.load_best(training)
            state.latest = current()
    if training.scale.overflows:
        text = f"{count_of(training.scale.overflows, 'step')} overflowed float16; repeated with a smaller loss scale"
        state.warnings.append(text)
    if training.embeddings is not None:
        state.trained.stopped_at.update(training.embeddings.stopped_at)
        state.trained.reached |= training.embeddings.reached


@dataclass
class StepRecorder:
    """Does what follows each step. `step` and `seconds` are those of the last one that was recorded."""

    context: RunContext
    state: RunState
    training: Training
    finished: Finished
    log_every: int
    after: After
    show: Callable[[str], None]
    step: int
    seconds: float

    def record(self, row: dict[str, Any]) -> None:
        """Write a step's row of metrics; sample, save, export what stopped, and write a checkpoint where one is due."""
        context, state, training, guard = self.context, self.state, self.training, self.training.guard
        before, self.step, self.seconds = self.seconds, row["step"], row["seconds"]
        active = row.pop("active")
        self._validate(row, before)
        over = self.step == training.steps or training.stopped
        if self.step % self.log_every == 0 or over:
            logged = active if training.embeddings is not None else ()
            initial, encoders = state.initial.by_name, context.model.encoders
            row["embeddings"] = {name: vector_metrics(encoders, training.injection, initial[name]) for name in logged}
        self.after(row, before)
        warn_of_idle_steps(context, state, training, self.step)
        with context.processes.together():
            if context.processes.main:
                self.finished.write(training.embeddings)
                context.metrics.write({"stage": state.stage + 1, **row})
        self.show(f"loss {row['loss']:.4f}")
        now = (guard is not None and guard.stops) or (over and context.checkpointer.rule.every.unit != "never")
        checkpoint_if_due(context, state, training, self.step, before, self.seconds, now=now)
        if over:
            context.checkpointer.request.steps_left = has_steps_left(context, state, state.stage + 1)
        if guard is not None:
            guard.raise_if_stopping()

    def _validate(self, row: dict[str, Any], before: float) -> None:
        """Where it is due, measure the loss of the held-out images with the weights that would be exported."""
        training, validation = self.training, self.training.validation
        if validation is None or not validation.due(training.clock(self.step, self.seconds), before):
            return
        with ema_weights(training), random_state_kept(training.model.device):
            row["validation"] = validation.measure(training, self.step)
        if training.stopped and self.step < training.steps:
            best = f"no better validation loss since step {validation.best_step}"
            self.context.progress(f"stopping after step {self.step} of {training.steps}: {best} (stop_when)")

    def checkpoint_last_good(self) -> None:
        """Before a loss that is not finite ends the run: a checkpoint of the step before."""
        if self.step:
            seconds = self.seconds
            checkpoint_if_due(self.context, self.state, self.training, self.step, seconds, seconds, now=True)


def add_notes(context: RunContext, state: RunState, training: Training) -> None:
    """What readers of the metrics and of a distributed run need to know; a guard stops here if it is to."""
    if training.guard is not None:
        training.guard.raise_if_stopping()  # a checkpoint that was written for it holds the reason to stop
    if context.processes.count > 1:
        state.notes.append(sharding_note(training))
    if training.embeddings is not None and training.embeddings.states.averaged:
        state.notes.append(EMA_NOTE)


def _close(state: RunState, training: Training, *, ended_together: bool) -> None:
    """Leave the weights that are exported, EMA weights where there are any; also in a stage that failed.

    Unless all processes `ended_together`, the others cannot be asked for their shards.
    """
    for trainable in training.trainables:
        if ended_together or not trainable.sharded:
            trainable.finish()
    for trainer in training.trainables.weights:
        if not ended_together and trainer.fsdp is not None:
            trainer.fsdp.discard()
            state.trained.finetuned.discard(trainer.fsdp.name)
            state.warnings.append(f"{trainer.name} was not saved; its last state is in the newest checkpoint")


def warn_of_idle_steps(context: RunContext, state: RunState, training: Training, step: int) -> None:
    """Warn once that the steps after this one train nothing."""
    embeddings = training.embeddings
    if embeddings is None or training.trainables.weights or len(embeddings.stopped_at) < len(embeddings.embeddings):
        return
    last, steps = max(embeddings.stopped_at.values()), training.steps
    idle = f"steps {last + 1} to {steps} have" if steps > last + 1 else f"step {steps} has"
    text = f"all embeddings reached stop_after at step {last}; {idle} nothing to train"
    if step < steps and text not in state.warnings:
        warn(context, state, text)


def warn_of_missing_steps(context: RunContext, state: RunState, trainer: EmbeddingTrainer | None) -> None:
    """Warn of embeddings that did not reach their stop_after.

    After the last checkpoint, and from the counts in it: a run that is resumed from there warns again, and with more
    steps it warns of what is true then.
    """
    short = trainer.stops.short() if trainer is not None else []
    if trainer is None or not short:
        return
    named = first_few([f"{embedding} has {had} of {wanted:.9g}" for embedding, had, wanted in short])
    total = count_of(len(trainer.stops.counts), "embedding")
    warn(context, state, f"{len(short)} of {total} did not reach stop_after: {named}; increase steps")


def require_all_sampled(trainer: EmbeddingTrainer | None) -> None:
    """StageError when a gradient reached an embedding in no step of the stage."""
    missed = sorted(trainer.embeddings.keys() - trainer.reached) if trainer is not None else []
    if missed:
        names = first_few([repr(name) for name in missed])
        verb = "was" if len(missed) == 1 else "were"
        except_for = "captions that are truncated before the placeholder do not count"
        raise StageError(
            f"{names} {verb} never sampled in this stage ({except_for}); increase steps or set data.balance"
        )
