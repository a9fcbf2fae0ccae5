"""When a checkpoint is due, and what it stores beside the training's own state."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ..processes import ALONE, Processes
from ..recipe.model import StopAfter
from ..train.clock import SECONDS, Clock
from .checkpoint import Checkpoint, write_checkpoint
from .stopping import StopAsked, Stopped

Snapshot = Callable[[], tuple[Mapping[str, Tensor], Mapping[str, Any]]]


class Keeper:
    """Writes a run's checkpoints: every so often, at the end of each train stage, and when a signal asks to stop."""

    def __init__(
        self, folder: Path, every: StopAfter, keep: int, asked: StopAsked, processes: Processes = ALONE
    ) -> None:
        self.folder, self.every, self.keep, self.asked, self.processes = folder, every, keep, asked, processes
        self._since = time.monotonic()

    def after_step(self, stage: int, clock: Clock, state: Snapshot) -> None:
        """Called after each step (`clock.step` are done); writes what is due. Raises Stopped when a signal has come.

        Where the recipe says `never`, one is written only then. A signal to one process stops all of them.
        """
        stopping = self.processes.any(self.asked.name is not None)
        with self.processes.together():
            due = stopping or self._due(clock.step, clock.steps, clock.steps_per_epoch)
            if due and self.processes.main:
                tensors, facts = state()
                write_checkpoint(self.folder, Checkpoint(stage, clock.step, clock.seconds, tensors, facts), self.keep)
                self._since = time.monotonic()
        if stopping:
            where = f"step {clock.step} of {clock.steps}"
            by = self.asked.name or "a signal to another process"
            raise Stopped(f"stopped by {by} after {where}; the same command goes on from here")

    def _due(self, step: int, steps: int, per_epoch: float) -> bool:
        every, value = self.every, self.every.value
        if every.unit == "never" or step == steps:
            return every.unit != "never"
        if every.unit in SECONDS:
            return time.monotonic() - self._since >= value * SECONDS[every.unit]
        size = {"steps": value, "epochs": value * per_epoch, "percent": value * steps / 100}[every.unit]
        return int(step / max(1.0, size)) > int((step - 1) / max(1.0, size))
