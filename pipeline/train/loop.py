"""The steps of one train stage: batch, words in, loss, gradient, words and LoRA moved, a line of metrics."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import StageError
from ..models.denoisers import Denoiser
from ..models.load import Model
from ..words.injection import ActiveRows, Injection
from .batches import Batch, Batches
from .latents import Latents
from .objective import Objective
from .word_trainer import Clock, WordTrainer

# Gradients of float16 weights are small enough to vanish: the loss is multiplied before and the gradient divided after.
LOSS_SCALE = {torch.float16: 128.0}


@dataclass(frozen=True, eq=False)
class LoraTrainer:
    """The LoRA's parameters and their own optimizer, so that its step size and clipping are not the words'."""

    parameters: list[torch.nn.Parameter]
    optimizer: torch.optim.Optimizer
    learning_rate: float
    clip_norm: float

    def step(self, factor: float, scale: float) -> float:
        """Move the LoRA; return the norm of its gradient before clipping. Raises StageError when it is not finite."""
        for parameter in self.parameters:
            if parameter.grad is not None and scale != 1.0:
                parameter.grad /= scale
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.clip_norm or math.inf)
        if not torch.isfinite(norm):
            raise StageError(f"the gradient of the LoRA is {float(norm)}, not a finite number")
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate * factor
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return float(norm)


@dataclass(frozen=True, eq=False)
class Training:
    """What a train stage is made of, put together before its first step."""

    model: Model
    denoiser: Denoiser
    injection: Injection
    objective: Objective
    latents: tuple[Latents, Latents | None]
    batches: Batches
    words: WordTrainer | None
    lora: LoraTrainer | None
    steps: int
    accumulation: int
    seed: int
    factor: Callable[[int], float]

    @property
    def steps_per_epoch(self) -> float:
        return len(self.batches.examples) / (self.batches.size * self.accumulation)


def train_steps(training: Training) -> Iterator[dict[str, Any]]:
    """Run the steps one by one, yielding each one's row of metrics.

    Raises StageError, with all vectors as the last good step left them, when loss or gradient is not finite.
    """
    begin = time.monotonic()
    for step in range(training.steps):
        clock = Clock(step, training.steps, training.steps_per_epoch, time.monotonic() - begin)
        row = one_step(training, clock)
        row["seconds"] = round(time.monotonic() - begin, 3)
        yield row


def one_step(training: Training, clock: Clock) -> dict[str, Any]:
    """One optimizer step over `accumulation` micro-batches."""
    first = clock.step * training.accumulation
    batches = [training.batches.at(first + part) for part in range(training.accumulation)]
    captions = [caption for batch in batches for caption in batch.captions]
    words = training.injection.words_in(captions)
    running = training.words.running(words, clock) if training.words else set()
    active = training.injection.take(words, train=bool(running))
    loss = 0.0
    for part, batch in enumerate(batches):
        loss += _backward(training, batch, first + part, grad_text=bool(running)) / training.accumulation
    if not math.isfinite(loss):
        raise StageError(f"the loss at step {clock.step + 1} is {loss}, not a finite number")
    factor = training.factor(clock.step)
    row: dict[str, Any] = {"step": clock.step + 1, "loss": loss, "learning_rate": {}}
    scale = LOSS_SCALE.get(training.model.dtype, 1.0)
    if training.lora:  # before the words, so that they are the last good ones when its gradient is not finite
        row["gradient_norm"] = training.lora.step(factor, scale)
        row["learning_rate"]["lora"] = factor * training.lora.learning_rate
    if training.words:
        _unscale(active, scale)
        row["gradient_norm"] = training.words.step(active, factor, running)
        row["learning_rate"]["words"] = factor * training.words.highest_rate
    row["active"] = words
    return row


def _backward(training: Training, batch: Batch, number: int, *, grad_text: bool) -> float:
    """Loss of one micro-batch; its gradient is added to the active rows and the LoRA."""
    model, objective = training.model, training.objective
    plain, mirrored = training.latents
    latents = plain.draw(batch.pictures, training.seed, number)
    if mirrored is not None:
        other = mirrored.draw(batch.pictures, training.seed, number)
        latents = torch.where(torch.tensor(batch.flipped).reshape(-1, 1, 1, 1), other, latents)
    noise, timesteps = objective.draw(latents, training.seed, number)
    noisy = objective.noisy(latents, noise, timesteps).to(model.device, model.dtype)
    target = objective.target(latents, noise, timesteps).to(model.device)
    with torch.set_grad_enabled(grad_text):
        text = training.denoiser.encode(model.pipe, list(batch.captions))
    prediction = training.denoiser.predict(model.pipe, noisy, timesteps.to(model.device), text)
    loss = objective.loss(prediction, target)
    if loss.requires_grad:
        (loss * (LOSS_SCALE.get(model.dtype, 1.0) / training.accumulation)).backward()
    return float(loss.detach())


def _unscale(active: dict[str, ActiveRows], scale: float) -> None:
    for rows in active.values():
        gradient: Tensor | None = rows.leaf.grad
        if gradient is not None and scale != 1.0:
            gradient /= scale
