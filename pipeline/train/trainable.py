"""The interface of everything that a step trains: embeddings, LoRAs, weights of the model."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

from ..recipe.intervals import Clock
from .guard import Guard


@dataclass(frozen=True, eq=False)
class State:
    """What a trainable needs to resume: tensors by name, and JSON values."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)


class Trainable(Protocol):
    """Something that a stage trains, with its own optimizer, schedule and EMA weights.

    A step asks all trainables for the norm of their gradient first, and steps only if all are finite: a step that
    fails, or that float16 has to repeat, changes no weight.
    """

    @property
    def name(self) -> str:
        """Its name in metrics and errors: `embeddings`, `lora.denoiser`, `finetune.clip_l`, ..."""

    @property
    def trains_text(self) -> bool:
        """Whether this step needs a gradient through the text encoders."""

    @property
    def sharded(self) -> bool:
        """Whether its state is sharded over several processes: all of them must call `state` together."""

    def leaves(self) -> Sequence[Tensor]:
        """The leaf tensors that get this step's gradient, in the same order in every process."""

    def gradient_norm(self, scale: float) -> float:
        """L2 norm of this step's gradient; the gradient was multiplied by `scale`, by which it is divided here."""

    def step(self, norm: float, clock: Clock, guard: Guard | None = None) -> None:
        """One optimizer step with the gradient of this norm, clipped, which is cleared; `guard` checks it."""

    def clear(self) -> None:
        """Clear the gradient without a step."""

    def learning_rates(self) -> dict[str, float]:
        """Name to the learning rate of the last step, multiplied by Prodigy's `d`."""

    def state(self) -> State:
        """Everything that a checkpoint stores, as copies; if it is sharded, gathered in the main process."""

    def restore(self, state: State) -> None:
        """Continue from what `state` gave. Raises StageError when it does not fit."""

    def ema_swapped(self) -> AbstractContextManager[None]:
        """Within it the model has the weights that are exported: EMA weights, if any, else the trained ones."""

    def finish(self) -> None:
        """End the training: the model keeps the weights that are exported."""
