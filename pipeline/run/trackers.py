"""TensorBoard, Weights & Biases and others through Accelerate: what the metrics hold, for those who look there."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy
from PIL import Image

from ..errors import StageError

# What is to be installed for each, where its name is not that of the package.
PACKAGES = {"comet_ml": "comet-ml"}


class Trackers:
    """The trackers that a stage names, begun when it begins. One that fails on the way is said and left out."""

    def __init__(self, names: Sequence[str], title: str, folder: Path, warn: Callable[[str], None]) -> None:
        """Raises StageError, with what to install, for a tracker that is not here or cannot begin."""
        self.trackers = {name: _begun(name, title, folder) for name in names}
        self.warn = warn

    def log(self, row: Mapping[str, Any], folder: Path) -> None:
        """One line of the metrics: its numbers under `a/b/c`, and the pictures drawn at this step."""
        step = int(row["step"])
        numbers = flat({key: value for key, value in row.items() if key not in ("step", "stage", "pictures")})
        paths = [folder / one["path"] for one in row.get("pictures", ())]

        def log(tracker: Any) -> None:
            tracker.log(numbers, step=step)
            if paths and hasattr(tracker, "log_images"):
                pictures = [numpy.asarray(Image.open(path).convert("RGB")) for path in paths]
                tracker.log_images({"pictures": _stacked(tracker.name, pictures)}, step=step, **_form(tracker.name))

        self._each(log, f"after step {step}")

    def close(self) -> None:
        self._each(lambda tracker: tracker.finish(), "at the end")

    def _each(self, work: Callable[[Any], None], when: str) -> None:
        """Do it for all of them. Whatever one raises (no network, a full disk) costs that one alone, not the run."""
        for name, tracker in list(self.trackers.items()):
            try:
                work(tracker)
            except Exception as error:  # noqa: BLE001 (whatever its own program raises)
                first = (str(error).strip().splitlines() or [type(error).__name__])[0]
                del self.trackers[name]
                self.warn(f"watch.trackers: {name} failed {when} ({first}); the run goes on without it")


def flat(value: Any, place: str = "") -> dict[str, float]:
    """Every number of a line of metrics by its place: `learning_rate/words`, `words/<cat>/clip_l/norm/0`."""
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return {}
    if isinstance(value, int | float):
        return {place: float(value)}
    items = value.items() if isinstance(value, Mapping) else enumerate(value)
    return {
        name: number
        for key, one in items
        for name, number in flat(one, f"{place}/{key}" if place else str(key)).items()
    }


def _begun(name: str, title: str, folder: Path) -> Any:
    from accelerate import PartialState
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    package = PACKAGES.get(name, name)
    there = importlib.util.find_spec(name) is not None
    if not there:
        raise StageError(f"watch.trackers: {name} is not installed; pip install {package}, or leave it out")
    PartialState()  # trackers ask it which process they are in
    kind = LOGGER_TYPE_TO_CLASS[name]
    try:
        tracker = kind(title, folder) if kind.requires_logging_directory else kind(title)
        tracker.start()
    except Exception as error:  # whatever its own program raises: no account, no network, no room
        raise StageError(f"watch.trackers: {name} cannot begin: {error}") from error
    return tracker


def _stacked(name: str, pictures: list[Any]) -> Any:
    """TensorBoard wants one array of pictures of one size; others take a list."""
    return numpy.stack(pictures) if name == "tensorboard" else [Image.fromarray(one) for one in pictures]


def _form(name: str) -> dict[str, str]:
    return {"dataformats": "NHWC"} if name == "tensorboard" else {}
