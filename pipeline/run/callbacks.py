"""What a train stage does after its steps besides training: sample images, saves, trackers."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy
import torch
from PIL import Image

from ...converters import disk
from ...converters.embedding import Contents
from ..errors import StageError
from ..export.context import ExportContext
from ..export.write import write_exports
from ..files import write_json
from ..models.load import part_modules
from ..recipe.options import ExportOptions, SaveOptions, TrainOptions, WatchOptions
from ..recipe.typed import options_of
from ..records import json_safe
from ..train.lora import without_lora
from ..train.setup import Training
from .context import RunContext, RunState, warn
from .samples import draw_now

# The package of each tracker, where it has another name.
PACKAGES = {"comet_ml": "comet-ml"}


class Trackers:
    """The trackers of a stage, started with it. One that fails later gives a warning and is dropped."""

    def __init__(self, names: Sequence[str], title: str, folder: Path, warn: Callable[[str], None]) -> None:
        """Raises StageError for a tracker that is not installed or cannot start."""
        self.trackers = {name: _start_tracker(name, title, folder) for name in names}
        self.warn = warn

    def log(self, row: Mapping[str, Any], folder: Path) -> None:
        """Log a row of metrics: its numbers as `a/b/c`, and the images drawn at this step."""
        step = int(row["step"])
        numbers = flat({key: value for key, value in row.items() if key not in ("step", "stage", "images")})
        paths = [folder / one["path"] for one in row.get("images", ())]

        def log(tracker: Any) -> None:
            tracker.log(numbers, step=step)
            if paths and hasattr(tracker, "log_images"):
                images = [numpy.asarray(Image.open(path).convert("RGB")) for path in paths]
                tracker.log_images(
                    {"images": _image_batch(tracker.name, images)}, step=step, **_image_options(tracker.name)
                )

        self._each(log, f"after step {step}")

    def close(self) -> None:
        self._each(lambda tracker: tracker.finish(), "at the end")

    def _each(self, work: Callable[[Any], None], when: str) -> None:
        """Call `work` for each tracker. One that raises (no network, a full disk) is dropped; the run continues."""
        for name, tracker in list(self.trackers.items()):
            try:
                work(tracker)
            except Exception as error:  # noqa: BLE001 (trackers raise anything)
                first = (str(error).strip().splitlines() or [type(error).__name__])[0]
                del self.trackers[name]
                self.warn(f"watch.trackers: {name} failed {when} ({first}); the run continues without it")


def flat(value: Any, key: str = "") -> dict[str, float]:
    """Every number of a row of metrics by its key: `learning_rate/embeddings`, `embeddings/<cat>/clip_l/norm/0`."""
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return {}
    if isinstance(value, int | float):
        return {key: float(value)}
    items = value.items() if isinstance(value, Mapping) else enumerate(value)
    return {
        name: number for part, one in items for name, number in flat(one, f"{key}/{part}" if key else str(part)).items()
    }


def _start_tracker(name: str, title: str, folder: Path) -> Any:
    from accelerate import PartialState
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    package = PACKAGES.get(name, name)
    there = importlib.util.find_spec(name) is not None
    if not there:
        raise StageError(f"watch.trackers: {name} is not installed; install it (pip install {package}) or remove it")
    PartialState()  # trackers ask it which process they are in
    kind = LOGGER_TYPE_TO_CLASS[name]
    try:
        tracker = kind(title, folder) if kind.requires_logging_directory else kind(title)
        tracker.start()
    except Exception as error:  # trackers raise anything: no account, no network, a full disk
        raise StageError(f"watch.trackers: {name} cannot start: {error}") from error
    return tracker


def _image_batch(name: str, images: list[Any]) -> Any:
    """TensorBoard needs one array of images of one size; others take a list."""
    return numpy.stack(images) if name == "tensorboard" else [Image.fromarray(one) for one in images]


def _image_options(name: str) -> dict[str, str]:
    return {"dataformats": "NHWC"} if name == "tensorboard" else {}


class Watch:
    """Draws the same prompts with the same seeds at every call."""

    def __init__(self, context: RunContext, stage: int, training: Training, options: WatchOptions) -> None:
        samples = context.recipe.samples
        prompts = tuple(options.prompts or samples.prompts)
        self.context, self.stage, self.training, self.every = context, stage, training, options.sample_every
        seeds = samples.seeds if prompts == samples.prompts else None
        drawn = replace(samples, prompts=prompts, seeds=seeds, count=options.count)
        self.recipe = replace(context.recipe, samples=drawn)

    def draw(self, step: int) -> list[dict[str, Any]]:
        """The rows of the images drawn after this step, counted from 1: path, prompt, seed and embedding.

        The main process draws; all must call it.
        """
        with ema_weights(self.training), self.context.processes.together():
            if not self.context.processes.main:
                return []
            model, name = self.training.model, f"stage-{self.stage + 1}-step-{step:06d}"
            with random_state_kept(model.device):
                self.training.injection.activate(self.recipe.samples.texts)
                rows = draw_now(model, self.recipe, self.context.folder / "images", name)
        return [{key: row[key] for key in ("path", "prompt", "seed", "embedding")} for row in rows]


@contextmanager
def ema_weights(training: Training) -> Iterator[None]:
    """The model as it would be exported now: EMA weights in place, modules in evaluation mode.

    With several processes all must do this together.
    """
    models = [part for part in training.model.pipe.components.values() if isinstance(part, torch.nn.Module)]
    modes = [(module, module.training) for model in models for module in model.modules()]
    with ExitStack() as stack:
        for trainable in training.trainables:
            stack.enter_context(trainable.ema_swapped())
        try:
            for model in models:
                model.eval()
            yield
        finally:
            for module, mode in modes:
                module.training = mode


@contextmanager
def random_state_kept(device: torch.device) -> Iterator[None]:
    """Restore the random state after the block, so that dropout in the next step is the same."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.no_grad():
        yield


class Saves:
    """Writes `saves/stage-3-step-000500/` and its like, as the recipe's export stage asks for; keeps the last few."""

    def __init__(
        self, context: RunContext, state: RunState, training: Training, options: SaveOptions,
        contents: Callable[[], Contents],
    ) -> None:  # fmt: skip
        """`contents` gives the embeddings and the LoRA as they are now."""
        self.context, self.state, self.training, self.options = context, state, training, options
        self.contents, self.folder = contents, context.folder / "saves"
        exports = context.recipe.stages_with(ExportOptions)
        self.export = exports[-1][1] if exports else options_of(ExportOptions)

    def save(self, step: int) -> str:
        """Save after this step, counted from 1; returns the folder's path relative to the run's folder.

        The folder appears when all of it is written and verified; an existing one stays. The main process writes; all
        must call it.
        """
        processes = self.context.processes
        final = self.folder / f"stage-{self.state.stage + 1}-step-{step:06d}"
        if processes.from_main(lambda: not final.exists()):
            with ema_weights(self.training), processes.together():
                if processes.main:
                    self._save(final, step)
        return final.relative_to(self.context.folder).as_posix()

    def _save(self, final: Path, step: int) -> None:
        for litter in self.folder.glob(".stage-*"):  # of a process that was killed while it wrote or deleted
            shutil.rmtree(litter, ignore_errors=True)
        part = self.folder / f".{final.name}.part"
        part.mkdir(parents=True)
        try:
            self._write(part, step)
            disk.replace(part, final)
            disk.sync_folder(self.folder)
        finally:
            shutil.rmtree(part, ignore_errors=True)
        self._delete_oldest()

    def _write(self, part: Path, step: int) -> None:
        context, state = self.context, self.state
        with random_state_kept(self.training.model.device):
            contents = self.contents()
            finetuned = frozenset(state.trained.finetuned if self.options.model else ())
            saved = ExportContext(
                context.recipe, context.model, part, state.initial, finetuned, state.stage, context.processes
            )
            with self.training.injection.suspended(), without_lora(part_modules(self.training.model).values()):
                write_exports(saved, contents, part, self.export)
        facts = {"step": step, "stage": state.stage + 1, "artefacts": saved.artefacts, "warnings": saved.warnings}
        write_json(part / "save.json", facts)

    def _delete_oldest(self) -> None:
        """Delete all saves of this stage but the last few; each is renamed first, so that none is left half deleted."""
        if not self.options.keep:
            return
        found = self.folder.glob(f"stage-{self.state.stage + 1}-step-*")
        steps = {path: path.name.rpartition("-")[2] for path in found}
        own = [path for path, step in steps.items() if step.isdecimal()]  # other names are the user's own copies
        for old in sorted(own, key=lambda path: int(steps[path]))[: -self.options.keep]:
            hidden = old.with_name(f".{old.name}.old")
            with suppress(PermissionError):  # Windows, while one of its files is open: more than `keep` stay
                disk.replace(old, hidden)
                shutil.rmtree(hidden)


After = Callable[[dict[str, Any], float], None]


@contextmanager
def step_callbacks(
    context: RunContext, state: RunState, training: Training, options: TrainOptions,
    contents: Callable[[], Contents],
) -> Iterator[After]:  # fmt: skip
    """Give a function to call with each step's row of metrics and the seconds at which the step before ended.

    It adds to the row what was drawn and saved. With several processes all must call it. `contents` gives the
    embeddings and the LoRA as they are now.
    """
    watch, save = options.watch, options.save
    names = watch.trackers if watch and context.processes.main else ()
    title = f"{context.recipe.name}-stage-{state.stage + 1}"
    trackers = Trackers(names, title, context.folder / "tracking", partial(warn, context, state))
    drawer = Watch(context, state.stage, training, watch) if watch else None
    saves = Saves(context, state, training, save, contents) if save else None

    def after(row: dict[str, Any], before: float) -> None:
        clock = training.clock(row["step"], row["seconds"])
        if drawer is not None and drawer.every is not None and drawer.every.due(clock, before):
            row["images"] = drawer.draw(row["step"])
        if saves is not None and saves.options.every.due(clock, before):
            row["saved"] = saves.save(row["step"])
        if watch and watch.trackers:
            with context.processes.together():
                trackers.log(json_safe(row), context.folder)

    try:
        yield after
    finally:
        trackers.close()
