"""What a model is trained on, chosen by its scheduler: diffusion or flow matching."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor

from ..recipe.options import NoiseOptions, ObjectiveOptions, TimestepOptions
from .diffusion import Diffusion
from .flow import Flow
from .loss import NoisyBatch


class Objective(Protocol):
    """What a training step asks of an objective."""

    kind: str
    timesteps: int

    def ask(self, latents: Tensor, seed: int, step: int) -> NoisyBatch:
        """What the denoiser is asked for one batch of float32 latents on the CPU, all drawn from (seed, step)."""

    def drawing(self, scheduler: Any) -> Any:
        """The pipeline's scheduler for drawing with what was trained: itself, where the options change nothing."""

    def losses(self, prediction: Tensor, question: NoisyBatch, mask: Tensor | None = None) -> Tensor:
        """The loss of each example, (batch,) float32."""


def objective_for(
    scheduler: Any, options: ObjectiveOptions, noise: NoiseOptions, timesteps: TimestepOptions
) -> Objective:
    """The objective of a pipeline's scheduler, with these options of a train stage.

    Raises StageError for options that do not fit the kind of model.
    """
    kind = Flow if type(scheduler).__name__.startswith("FlowMatch") else Diffusion
    return kind(scheduler, options, noise, timesteps)
