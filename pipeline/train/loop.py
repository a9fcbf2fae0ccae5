"""The steps of a train stage: batch, active embeddings, loss, gradients, optimizer steps, a row of metrics."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..data.dataset import Batch, local_batches
from ..distributed import sum_gradients
from ..models.frozen import frozen_outputs
from ..recipe.intervals import Clock
from ..rng import generator
from .guard import NotFinite, advice
from .loss import NoisyBatch, mean_loss, part_loss
from .reach import require_reach
from .setup import Training


def train_steps(training: Training, first: int = 0, seconds: float = 0.0) -> Iterator[dict[str, Any]]:
    """Run the steps and yield each one's row of metrics; the first `first` steps, which took `seconds`, are done.

    Ends early when `training.stopped`.
    Raises StageError, with all weights as the last good step left them, when loss or gradient is not finite.
    """
    begin, main_number = time.monotonic() - seconds, training.processes.main_number
    for step in range(first, training.steps):
        if training.stopped:
            return
        clock = training.clock(step, main_number(time.monotonic() - begin))
        row = one_step(training, clock)
        # the same in all processes, so the same actions are due
        row["seconds"] = round(main_number(time.monotonic() - begin), 3)
        yield row


def one_step(training: Training, clock: Clock) -> dict[str, Any]:
    """One optimizer step over `accumulation` micro-batches; returns its row of metrics.

    A step whose loss or gradient is not finite is skipped where the guard allows it; else NotFinite is raised.
    """
    captions = step_captions(training, clock.step)
    embeddings = activate_embeddings(training, captions, clock)
    numbers = step_numbers(training, clock.step)
    batches = local_batches(training.dataset, numbers, training.processes, in_step=training.sharded)
    before = replace(training.scale)
    try:
        loss, norms = gradients(training, batches, clock.step)
        while not all(math.isfinite(norm) for norm in norms.values()):
            for trainable in training.trainables:
                trainable.clear()
            if not training.scale.halve():
                training.scale.go_back(before)
                bad = next(name for name, norm in norms.items() if not math.isfinite(norm))
                raise NotFinite(f"the gradient of {bad} at step {clock.step + 1} is {norms[bad]}, not a finite number")
            loss, norms = gradients(training, batches, clock.step)
        training.scale.keep()
        require_reach(training, captions, numbers)
        for trainable in training.trainables:
            trainable.step(norms[trainable.name], clock, training.guard)
    except NotFinite as error:
        if training.guard is None or not training.guard.skips(error):
            raise NotFinite(f"{error}; {advice(training.model.dtype)}") from error
        for trainable in training.trainables:
            trainable.clear()
        loss, norms = math.nan, {}
    return _row(training, clock, loss, norms) | {"active": embeddings}


def step_numbers(training: Training, step: int) -> range:
    """The indices of a step's micro-batches."""
    return range(step * training.accumulation, (step + 1) * training.accumulation)


def step_captions(training: Training, step: int) -> list[str]:
    """The captions of a step in all processes: each of them trains the same embeddings."""
    return [caption for number in step_numbers(training, step) for caption in training.dataset.captions(number)]


def activate_embeddings(training: Training, captions: Sequence[str], clock: Clock) -> list[str]:
    """Activate the embeddings in these captions, with gradients if they are still trained; return their names."""
    embeddings = training.injection.embeddings_in(captions)
    if training.embeddings is None:
        training.injection.take(embeddings, train=False)
    else:
        training.embeddings.begin(embeddings, clock)
    return embeddings


def gradients(training: Training, batches: Sequence[Batch | None], step: int) -> tuple[float, dict[str, float]]:
    """The loss of a step, and the norm of the gradient of each trainable, summed over all processes.

    Raises StageError when the loss is not finite; no weight has changed then.
    """
    processes, total = training.processes, 0.0
    grad_text = any(trainable.trains_text for trainable in training.trainables)
    # a sharded part makes processes wait within a batch: they notice when one of them ends
    with nullcontext() if training.sharded else processes.together():
        for number, batch in zip(step_numbers(training, step), batches, strict=True):
            if not batch:
                continue
            first = () if batch.full is None else (batch.full.part.start,)
            seed_dropout(training.model.device, generator(training.seed, "dropout", number, *first).initial_seed())
            loss = batch_loss(training, batch, number, grad_text=grad_text)
            if batch.idle:
                loss = loss * 0.0
            if loss.requires_grad:
                (loss * (training.scale.value / training.accumulation)).backward()
            total += float(loss.detach())
    mean = processes.sum_numbers([total])[0] / training.accumulation
    if not math.isfinite(mean):
        raise NotFinite(f"the loss at step {step + 1} is {mean}, not a finite number")
    sum_gradients([leaf for trainable in training.trainables for leaf in trainable.leaves()], processes)
    return mean, {trainable.name: trainable.gradient_norm(training.scale.value) for trainable in training.trainables}


def seed_dropout(device: torch.device, seed: int) -> None:
    """Seed the generator that dropout draws from on this device."""
    if device.type == "cpu":
        torch.default_generator.manual_seed(seed)  # a fiftieth of the time of `torch.manual_seed`
    else:
        torch.manual_seed(seed)


def batch_loss(training: Training, batch: Batch, number: int, *, grad_text: bool) -> Tensor:
    """Loss of micro-batch `number` of the stage, with its graph."""
    model, objective = training.model, training.objective
    noisy_batch = _noisy_batch(training, batch, number).to(model.device, model.dtype)
    if training.texts is not None:
        text = training.texts(batch.captions, model.device)
    else:
        with torch.set_grad_enabled(grad_text), frozen_outputs(training.frozen, batch.captions):
            text = training.denoiser.encode(model.pipe, list(batch.captions))
    if training.prior_target is not None:
        noisy_batch = training.prior_target.add(noisy_batch, batch, text)
    prediction = training.denoiser.predict(model.pipe, noisy_batch.noisy, noisy_batch.timesteps, text, batch.sizes)
    losses = objective.losses(prediction, noisy_batch, batch.mask)
    if batch.full is None:
        loss = mean_loss(losses, batch.weight, batch.prior, training.prior_weight)
    else:
        loss = part_loss(losses, batch.full, training.prior_weight)
    near = training.locality.loss(text, noisy_batch, batch.sizes, number, batch.full) if training.locality else None
    return loss if near is None else loss + near


def _noisy_batch(training: Training, batch: Batch, number: int) -> NoisyBatch:
    """Noise and target of a batch; of a part of a batch, what these examples have in the full batch."""
    if batch.full is None:
        return training.objective.sample(batch.latents, training.seed, number)
    latents = torch.zeros(batch.full.size, *batch.latents.shape[1:])
    latents[batch.full.part] = batch.latents
    return training.objective.sample(latents, training.seed, number).cut(batch.full.part)


def _row(training: Training, clock: Clock, loss: float, norms: dict[str, float]) -> dict[str, Any]:
    """A step's row of metrics; `gradient_norm` is the norm over all trainables."""
    row: dict[str, Any] = {"step": clock.step + 1, "loss": loss, "gradient_norm": math.hypot(*norms.values())}
    if len(norms) > 1:
        row["gradient_norms"] = norms
    if training.locality is not None:
        row["locality"] = training.locality.mean_difference(training.processes)
    if training.scale.dynamic:
        row["loss_scale"] = training.scale.value
    row["learning_rate"] = {
        key: rate for trainable in training.trainables for key, rate in trainable.learning_rates().items()
    }
    return row
