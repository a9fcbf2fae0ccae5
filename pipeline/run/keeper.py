"""When a checkpoint is due, and what it stores beside the training's own state."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ..recipe.model import StopAfter
from ..train.clock import SECONDS, Clock
from .checkpoint import Checkpoint, write_checkpoint
from .stopping import StopAsked, Stopped

Snapshot = Callable[[], tuple[Mapping[str, Tensor], Mapping[str, Any]]]


class Keeper:
    """Writes a run's checkpoints: every so often, at the end of each train stage, and when a signal asks to stop."""

    def __init__(self, folder: Path, every: StopAfter, keep: int, asked: StopAsked) -> None:
        self.folder, self.every, self.keep, self.asked = folder, every, keep, asked
        self._since = time.monotonic()

    def after_step(self, stage: int, clock: Clock, state: Snapshot) -> None:
        """Called after each step (`clock.step` are done); writes what is due. Raises Stopped when a signal has come.

        Where the recipe says `never`, one is written only then.
        """
        stopping = self.asked.name is not None
        if stopping or self._due(clock.step, clock.steps, clock.steps_per_epoch):
            tensors, facts = state()
            write_checkpoint(self.folder, Checkpoint(stage, clock.step, clock.seconds, tensors, facts), self.keep)
            self._since = time.monotonic()
        if stopping:
            where = f"step {clock.step} of {clock.steps}"
            raise Stopped(f"stopped by {self.asked.name} after {where}; the same command goes on from here")

    def _due(self, step: int, steps: int, per_epoch: float) -> bool:
        every, value = self.every, self.every.value
        if every.unit == "never" or step == steps:
            return every.unit != "never"
        if every.unit in SECONDS:
            return time.monotonic() - self._since >= value * SECONDS[every.unit]
        size = {"steps": value, "epochs": value * per_epoch, "percent": value * steps / 100}[every.unit]
        return int(step / max(1.0, size)) > int((step - 1) / max(1.0, size))
