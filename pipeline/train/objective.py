"""What a model is trained on, chosen by its scheduler: diffusion or flow matching."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor

from ..recipe.defaults import defaults
from .diffusion import Diffusion
from .flow import Flow
from .loss import NoiseOptions, NoisyBatch, TimeStepOptions


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
    scheduler: Any,
    options: Mapping[str, Any] | None = None,
    noise: Mapping[str, Any] | None = None,
    timesteps: Mapping[str, Any] | None = None,
) -> Objective:
    """The objective of a pipeline's scheduler. The tables are those of a train stage; one left out is all defaults.

    Raises StageError for options that do not fit the kind of model.
    """
    kind = Flow if type(scheduler).__name__.startswith("FlowMatch") else Diffusion
    return kind(
        scheduler,
        defaults("tables/objective.json") | dict(options or {}),
        NoiseOptions.of(noise or defaults("tables/noise.json")),
        TimeStepOptions.of(timesteps or defaults("tables/timesteps.json")),
    )
