"""What a run that was stopped has learnt so far, as files: hours of training must not be lost with it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ...converters.embedding import Contents
from ...converters.errors import ConvertError
from ..errors import StageError
from ..run.manifest_file import left_behind
from ..run.state import Run
from .lora import write_plain
from .model_folder import write_model_folder
from .standalone import write_standalone

FOLDER = "last-good"


def _places(run: Path) -> tuple[Path, Path]:
    """The folder, and the one that it becomes before it is deleted."""
    return run / FOLDER, run / f".{FOLDER}.old"


def keep_last_good(run: Run, contents: Contents, *, model: bool) -> None:
    """Write words and LoRA, as the last good step left them, to `last-good/` of the run's folder, anew each time.

    They are called as in `exports/`: the words are in `<name>_embeddings/`, so that a LoRA may have a word's name.
    With `model` a fine-tuned model is there too, as `<name>_model/` in its own data type; words and LoRA are then taken
    out of it. What cannot be written is said and raises nothing: why the run ended must not be hidden by that.
    """
    folder, old = _places(run.folder)
    part = old.with_suffix(".part")
    shutil.rmtree(part, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)
    try:
        what = _written(run, contents, part, model and bool(run.finetuned))
        if folder.exists():
            folder.rename(old)  # a kill while it is deleted, or before, leaves one of them whole
        part.rename(folder)
        run.progress(f"the last good {' and '.join(what)} are in {folder}")
    except (ConvertError, StageError, OSError) as error:
        run.warnings.append(f"what was learnt so far could not be written to {folder}: {error}")
        run.progress(f"warning: {run.warnings[-1]}")
    finally:
        shutil.rmtree(part, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def hide_last_good(run: Path) -> None:
    """Put `last-good/` out of sight: the verified exports of the run's folder replace it."""
    folder, old = _places(run)
    if folder.exists():
        shutil.rmtree(old, ignore_errors=True)
        folder.rename(old)


def forget_last_good(run: Path) -> None:
    """Take `last-good/` away for good."""
    hide_last_good(run)
    shutil.rmtree(_places(run)[1], ignore_errors=True)


@contextmanager
def last_good_until_the_end(run: Path) -> Iterator[None]:
    """Around all that a run does and notes: what was hidden is deleted when its manifest says that it has finished.

    A run that fails has it again, unless a newer one is there. One that goes on after a kill in between has it too: see
    `run.leftovers`.
    """
    folder, old = _places(run)
    try:
        yield
    finally:
        left = left_behind(run)
        if left is not None and left["status"] in ("ending", "finished"):
            shutil.rmtree(old, ignore_errors=True)
        elif old.exists() and not folder.exists():
            with suppress(OSError):  # why the run ended must not be hidden by that
                old.rename(folder)


def _written(run: Run, contents: Contents, folder: Path, model: bool) -> list[str]:
    """What was written into the folder, in words."""
    folder.mkdir(parents=True)
    what = []
    if contents.embeddings:
        write_standalone(run, contents.embeddings, folder / f"{run.recipe.name}_embeddings")
        what.append("vectors")
    if contents.rest:
        write_plain(run, contents.rest, folder / f"{run.recipe.name}.safetensors")
        what.append("LoRA")
    if model:
        run.eject()
        write_model_folder(run.model.pipe, folder / f"{run.recipe.name}_model", run.model.dtype)
        what.append("weights")
    return what
