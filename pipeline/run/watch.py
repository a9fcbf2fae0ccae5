"""Pictures while a stage trains, with what it has learnt so far: they read the model and change nothing of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch

from ..train.training import Training
from .samples import draw_now
from .state import Run


class Watch:
    """Draws the same prompts from the same seeds again and again."""

    def __init__(self, run: Run, training: Training, options: Mapping[str, Any]) -> None:
        samples = run.recipe.samples
        prompts = tuple(options["prompts"] or samples.prompts)
        self.run, self.training = run, training
        self.recipe = replace(run.recipe, samples=replace(samples, prompts=prompts, count=options["count"]))

    def draw(self, step: int) -> list[dict[str, Any]]:
        """The rows of the pictures drawn after this step, counted from 1: path, prompt, seed and word.

        The main process draws; all must ask for it.
        """
        with as_used(self.training), self.run.processes.together():
            return self._drawn(step) if self.run.processes.main else []

    def _drawn(self, step: int) -> list[dict[str, Any]]:
        model = self.training.model
        name = f"stage-{self.run.stage + 1}-step-{step:06d}"
        with undisturbed(model.device):
            self.training.injection.activate(self.recipe.samples.prompts)
            rows = draw_now(model, self.recipe, self.run.folder / "pictures", name)
        return [{key: row[key] for key in ("path", "prompt", "seed", "word")} for row in rows]


@contextmanager
def as_used(training: Training) -> Iterator[None]:
    """The model as it would be used if the training ended here: averages in their places, nothing dropped out.

    With several processes all must do this together.
    """
    models = [part for part in training.model.pipe.components.values() if isinstance(part, torch.nn.Module)]
    modes = [(module, module.training) for model in models for module in model.modules()]
    with ExitStack() as stack:
        for thing in training.things:
            stack.enter_context(thing.averaged())
        try:
            for model in models:
                model.eval()
            yield
        finally:
            for module, mode in modes:
                module.training = mode


@contextmanager
def undisturbed(device: torch.device) -> Iterator[None]:
    """Random numbers drawn inside are as if they had not been: dropout in the next step finds the same state."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.no_grad():
        yield
