"""Things that are due every so often while a stage trains."""

from __future__ import annotations

from ..recipe.model import StopAfter

SECONDS = {"seconds": 1.0, "minutes": 60.0, "hours": 3600.0}


class Rhythm:
    """`every` so many steps, epochs, per cent of the stage, seconds, minutes or hours.

    By steps it depends on the step alone; by the clock something is due at the first step after the time has passed.
    """

    def __init__(self, every: StopAfter, *, steps: int, steps_per_epoch: float) -> None:
        self.every, self.steps, self.steps_per_epoch = every, steps, steps_per_epoch
        self._seconds = 0.0

    def due(self, step: int, seconds: float) -> bool:
        """Whether a turn has come to its end with this step, counted from 1, so long after the stage began."""
        if self.every.unit in SECONDS:
            length = self.every.value * SECONDS[self.every.unit]
            before, self._seconds = self._seconds, seconds
            return seconds // length > before // length
        return self._turns(step) > self._turns(step - 1)

    def _turns(self, step: int) -> int:
        whole = {"steps": 1.0, "epochs": self.steps_per_epoch, "percent": self.steps / 100}[self.every.unit]
        return int(step / (self.every.value * whole) + 1e-9)
