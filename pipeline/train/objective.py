"""The training objective of a family and its scheduler: diffusion, flow matching, or a ratio of noise."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor

from ..recipe.options import NoiseOptions, ObjectiveOptions, TimestepOptions
from .loss import NoisyBatch


class Objective(Protocol):
    """The interface of a training objective."""

    kind: str
    timesteps: int
    options: ObjectiveOptions

    def sample(self, latents: Tensor, seed: int, step: int) -> NoisyBatch:
        """Noise and target for a batch of float32 latents on the CPU, drawn from (seed, step) alone."""

    def sampling_scheduler(self, scheduler: Any) -> Any:
        """The scheduler for sampling with the trained model: the pipeline's own, unless the options change it."""

    def losses(self, prediction: Tensor, noisy_batch: NoisyBatch, mask: Tensor | None = None) -> Tensor:
        """The loss of each example, (batch,) float32."""


def objective_for(
    kind: str, scheduler: Any, options: ObjectiveOptions, noise: NoiseOptions, timesteps: TimestepOptions
) -> Objective:
    """The objective of a kind of model (`Family.objective`), with its scheduler and these options of a train stage.

    A flow matching model may be drawn with another kind of scheduler (Sana, Wan), and a model of a family trained by
    diffusion may have been retrained for flow matching: its scheduler tells. Raises StageError for options that do not
    fit the kind of model.
    """
    found = "flow" if type(scheduler).__name__.startswith("FlowMatch") else kind
    if found == "flow":  # imported here, as a run needs one of them
        from .flow import Flow

        return Flow(scheduler, options, noise, timesteps)
    if found == "cosine":
        from .cosine import Cosine

        return Cosine(scheduler, options, noise, timesteps)
    from .diffusion import Diffusion

    return Diffusion(scheduler, options, noise, timesteps)
