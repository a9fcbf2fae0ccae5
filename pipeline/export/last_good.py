"""What a run that was stopped has learnt so far, as files: hours of training must not be lost with it."""

from __future__ import annotations

import shutil
from pathlib import Path

from ...converters.embedding import Contents
from ...converters.errors import ConvertError
from ..errors import StageError
from ..run.state import Run
from .lora import write_plain
from .model_folder import write_model_folder
from .standalone import write_standalone


def keep_last_good(run: Run, contents: Contents, *, model: bool) -> None:
    """Write words and LoRA, as the last good step left them, to `last-good/` of the run's folder, anew each time.

    They are called as in `exports/`: the words are in `<name>_embeddings/`, so that a LoRA may have a word's name.
    With `model` a fine-tuned model is there too, as `<name>_model/` in its own data type; words and LoRA are then taken
    out of it. What cannot be written is said and raises nothing: why the run ended must not be hidden by that.
    """
    folder = run.folder / "last-good"
    part, old = (folder.with_name(f".{folder.name}.{end}") for end in ("part", "old"))
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
