"""What goes on beside the steps of a train stage: pictures, saves, trackers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from ...converters.embedding import Contents
from ..recipe.stop import parse_stop
from ..train.rhythm import Rhythm
from ..train.training import Training
from .metrics import finite
from .saves import Saves, Write
from .state import Run
from .trackers import Trackers
from .watch import Watch

Options = Mapping[str, Any] | None
After = Callable[[dict[str, Any], float], None]


@contextmanager
def beside(
    run: Run, training: Training, watch: Options, save: Options, contents: Callable[[], Contents], write: Write
) -> Iterator[After]:
    """Give a function to be called with each step's line of metrics, which adds to it what was drawn and saved.

    With several processes all must call it: the main one draws and writes what may be spread over all of them. It wants
    the seconds at which the step before ended, too. `contents` gives words and LoRA as they are now, `write` writes
    them as the export stage does.
    """
    title = f"{run.recipe.name}-stage-{run.stage + 1}"
    wanted = watch["trackers"] if watch and run.processes.main else ()
    trackers = Trackers(wanted, title, run.folder / "tracking", run.warn)
    looks = _rhythm(watch and watch["sample_every"], training)
    eye = Watch(run, training, watch) if watch and looks else None
    turns = _rhythm(save and save["every"], training)
    saves = Saves(run, training, save, contents, write) if save and turns else None

    def after(row: dict[str, Any], before: float) -> None:
        if eye is not None and looks is not None and looks.due(row["step"], before, row["seconds"]):
            row["pictures"] = eye.draw(row["step"])
        if saves is not None and turns is not None and turns.due(row["step"], before, row["seconds"]):
            row["saved"] = saves.save(row["step"])
        if watch and watch["trackers"]:
            with run.processes.together():
                trackers.log(finite(row), run.folder)

    try:
        yield after
    finally:
        trackers.close()


def _rhythm(text: Any, training: Training) -> Rhythm | None:
    if not text:
        return None
    return Rhythm(parse_stop(text), training.steps, training.steps_per_epoch)
