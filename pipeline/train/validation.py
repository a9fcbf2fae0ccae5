"""The loss of held-out images during a train stage: always with the same noise, and with the best state kept."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import StageError
from ..recipe.intervals import Clock
from ..recipe.model import ValidationSpec
from ..rng import generator
from .packing import copied, copy_into
from .trainable import State

if TYPE_CHECKING:
    from .setup import Training

Tensors = dict[str, Tensor]


class Validation:
    """When a stage validates, its best loss so far, and when it stops.

    `best_step` is the step of the `best` loss (None before the first validation), `last_step` that of the last one,
    `since` how many validations there were since the best one. The best state is kept if `keep`.
    """

    def __init__(self, spec: ValidationSpec, seed: int, patience: int | None, *, keep: bool) -> None:
        """`seed` is the recipe's: all train stages measure with the same noise. `patience`: see `stops`."""
        self.spec, self.seed, self.patience, self.keep = spec, seed, patience, keep
        self.best: float | None = None
        self.best_step = self.last_step = self.since = 0
        self.kept: Tensors = {}

    @property
    def stops(self) -> bool:
        """Whether the loss has not been better for `patience` validations."""
        return self.patience is not None and self.since >= self.patience

    def due(self, clock: Clock, before: float) -> bool:
        """Whether the step that has ended is validated; `before` is as in `Every.due`."""
        return clock.step == clock.steps or self.spec.every.due(clock, before)

    def measure(self, training: Training, step: int) -> float:
        """The loss of the held-out images after this step (from 1), with the weights that are in the model.

        A loss that is not finite is not better than any other. Activates the embeddings of the images.
        """
        loss = held_out_loss(training, self.seed, self.spec.draws)
        self.last_step = step
        if loss < (float("inf") if self.best is None else self.best):
            self.best, self.best_step, self.since = loss, step, 0
            self.kept = {name: copied(tensor) for name, tensor in _exported(training).items()} if self.keep else {}
        else:
            self.since += 1
        return loss

    def load_best(self, training: Training) -> None:
        """Put the best state into the model, whose training has ended. StageError where no loss was finite."""
        if self.best is None:
            raise StageError(
                "export.from = 'best': no validation loss is a finite number; use a smaller learning_rate, or "
                "from = 'last'"
            )
        for name, tensor in _exported(training).items():
            copy_into(tensor, self.kept[name], name)

    @property
    def note(self) -> str:
        """What the stage found, for the manifest."""
        if self.best is None:
            return f"validation: no finite loss up to step {self.last_step}"
        text = f"validation: best loss {self.best:.6g} after step {self.best_step}"
        if self.stops:
            text += f"; stopped after step {self.last_step}, as it was no better for {self.since}"
        return f"{text}; exported from the best state" if self.keep else text

    def state(self) -> State:
        """What a checkpoint stores."""
        names = ("best", "best_step", "last_step", "since")
        return State(dict(self.kept), {name: getattr(self, name) for name in names})

    def restore(self, state: State, training: Training) -> None:
        """Continue from what `state` gave. StageError when it lacks the best state that this run keeps."""
        values: Mapping[str, Any] = state.values
        self.best = None if values["best"] is None else float(values["best"])
        self.best_step, self.last_step = int(values["best_step"]), int(values["last_step"])
        self.since = int(values["since"])
        if self.keep and self.best is not None:
            lacking = [name for name in _exported(training) if name not in state.tensors]
            if lacking:
                raise StageError(f"the checkpoint has no best state of {lacking[0]}; use export.from = 'last'")
            self.kept = dict(state.tensors)


@torch.no_grad()
def held_out_loss(training: Training, seed: int, draws: int) -> float:
    """The mean loss of the held-out images, each with `draws` noises and timesteps.

    Noise and timestep depend on the seed, the content of the image and the number of the draw alone, so that two
    validations differ by the weights only.
    """
    dataset, pipe, objective = training.dataset, training.model.pipe, training.objective
    total = 0.0
    for number, example in enumerate(dataset.held_out):
        image = dataset.held_out_image(number)
        training.injection.activate(image.captions)
        text = training.denoiser.encode(pipe, list(image.captions))
        for draw in range(draws):
            own = generator(seed, "validation", example.content, draw).initial_seed()
            noisy = objective.sample(image.latents, own, 0).to(training.model.device, training.model.dtype)
            prediction = training.denoiser.predict(pipe, noisy.noisy, noisy.timesteps, text, image.sizes)
            total += float(objective.losses(prediction, noisy, image.mask).mean())
    return total / (draws * len(dataset.held_out))


def _exported(training: Training) -> Tensors:
    """What the stage trains, in the model: the rows of all embeddings, LoRAs, weights."""
    rows = training.injection.rows.items() if training.embeddings is not None else ()
    return {f"rows/{key}": one.values for key, one in rows} | {
        f"weights/{name}": parameter.data for name, parameter in training.trainables.parameters.items()
    }
