"""When a checkpoint is due, and what it stores beside the training's own state."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ..processes import ALONE, Processes
from ..recipe.model import StopAfter
from ..train.clock import Clock
from ..train.rhythm import Rhythm
from .checkpoint import Checkpoint, write_checkpoint
from .stopping import StopAsked, Stopped

Snapshot = Callable[[], tuple[Mapping[str, Tensor], Mapping[str, Any]]]

GOES_ON = "the same command goes on from here"


class Keeper:
    """Writes a run's checkpoints: every so often, at the end of each train stage, and when a signal asks to stop."""

    def __init__(
        self, folder: Path, every: StopAfter, keep: int, asked: StopAsked, processes: Processes = ALONE,
        way: str = GOES_ON,
    ) -> None:  # fmt: skip
        """`way` says how a run that was asked to stop goes on."""
        self.folder, self.every, self.keep, self.asked, self.processes = folder, every, keep, asked, processes
        self.way = way

    def after_step(self, stage: int, clock: Clock, before: float, state: Snapshot, *, now: bool = False) -> None:
        """Called after each step (`clock.step` are done); writes what is due. Raises Stopped when a signal has come.

        The step before ended `before` seconds after the stage began. Where the recipe says `never`, one is written
        only when a signal has come, or when all processes ask for it `now`. A signal to one process stops all of them.
        """
        rhythm = Rhythm(self.every, clock.steps, clock.steps_per_epoch)
        last = clock.step == clock.steps and self.every.unit != "never"
        due = now or last or rhythm.due(clock.step, before, clock.seconds)  # the same in every process
        stopping = self.processes.any(self.asked.name is not None)
        if stopping or due:
            tensors, facts = state()  # all processes together: some of it may be spread over them
            with self.processes.together():
                if self.processes.main:
                    point = Checkpoint(stage, clock.step, clock.seconds, tensors, facts)
                    write_checkpoint(self.folder, point, self.keep)
        if stopping:
            where = f"step {clock.step} of {clock.steps}"
            by = self.asked.name or "a signal to another process"
            raise Stopped(f"stopped by {by} after {where}; {self.way}")
