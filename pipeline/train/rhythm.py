"""Things that are due every so often while a stage trains."""

from __future__ import annotations

from dataclasses import dataclass

from ..recipe.model import StopAfter
from .clock import SECONDS


@dataclass(frozen=True)
class Rhythm:
    """`every` so many steps, epochs, per cent of the stage, seconds, minutes or hours; or never.

    By steps it depends on the step alone; by the clock something is due at the first step after the time has passed.
    """

    every: StopAfter
    steps: int
    steps_per_epoch: float

    def due(self, step: int, before: float, seconds: float) -> bool:
        """Whether a turn has come to its end with this step, counted from 1.

        The step before ended `before` seconds after the stage began, this one `seconds` after it; where a run goes
        on, the seconds of the earlier process count.
        """
        if self.every.unit == "never":
            return False
        if self.every.unit in SECONDS:
            length = self.every.value * SECONDS[self.every.unit]
            return seconds // length > before // length
        return self._turns(step) > self._turns(step - 1)

    def _turns(self, step: int) -> int:
        whole = {"steps": 1.0, "epochs": self.steps_per_epoch, "percent": self.steps / 100}[self.every.unit]
        return int(step / (self.every.value * whole) + 1e-9)
