"""What a training step asks of everything it trains: embeddings, LoRAs, the weights of the model."""

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
    """All that a trained thing must know to go on: tensors by name, and values that JSON can spell."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)


class Trainable(Protocol):
    """One thing that a stage trains, with its own optimizer, schedule and average.

    A step asks every thing for its gradient first, and moves them only when all are finite: so a step that fails, or
    that float16 must repeat, leaves everything as the last good step left it.
    """

    @property
    def name(self) -> str:
        """What metrics and errors call it: `embeddings`, `lora.denoiser`, `finetune.clip_l`, ..."""

    @property
    def trains_text(self) -> bool:
        """Whether this step's gradient must go through the text encoders."""

    @property
    def sharded(self) -> bool:
        """Whether its state is sharded over several processes: all of them must ask for it at the same time."""

    def leaves(self) -> Sequence[Tensor]:
        """What collects this step's gradient: the same tensors in the same order in every process."""

    def gradient_norm(self, scale: float) -> float:
        """The L2 norm of the gradient that has been collected, which was multiplied by `scale`; it is divided here."""

    def step(self, norm: float, clock: Clock, guard: Guard | None = None) -> None:
        """One optimizer step with the gradient of this norm, clipped, which is then cleared; `guard` looks at it."""

    def clear(self) -> None:
        """Forget the gradient without moving."""

    def learning_rates(self) -> dict[str, float]:
        """Name to the effective step size of the last step: for Prodigy what it has found times the rate."""

    def state(self) -> State:
        """Everything a checkpoint must hold, as copies; where it is spread, whole in the main process alone."""

    def restore(self, state: State) -> None:
        """Go on from what `state` gave. Raises StageError when it does not fit."""

    def averaged(self) -> AbstractContextManager[None]:
        """Within it the model has the values to be used: the average where one is kept, else the present ones."""

    def finish(self) -> None:
        """The training is over: what `averaged` shows stays."""
