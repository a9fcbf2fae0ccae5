"""What a run that was stopped has learnt so far, as files: hours of training must not be lost with it."""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path

from ...converters.embedding import Contents
from ...converters.errors import ConvertError
from ..errors import StageError
from .context import ExportContext
from .lora import write_plain
from .model import write_model_folder
from .standalone import write_standalone

FOLDER = "last-good"


def _places(run: Path) -> tuple[Path, Path]:
    """The folder, and the one that it becomes before it is deleted."""
    return run / FOLDER, run / f".{FOLDER}.old"


def keep_last_good(context: ExportContext, contents: Contents, *, model: bool) -> None:
    """Write embeddings and LoRA, as the last good step left them, to `last-good/` of the run's folder, anew each time.

    They are called as in `exports/`: the embeddings are in `<name>_embeddings/`, so that a LoRA may have an embedding's
    name. With `model` a fine-tuned model is there too, as `<name>_model/` in its own data type; embeddings and LoRA are
    then taken out of it. What cannot be written is said and raises nothing: why the run ended must not be hidden by
    that.
    """
    folder, old = _places(context.folder)
    part = old.with_suffix(".part")
    shutil.rmtree(part, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)
    try:
        what = _written(context, contents, part, model and bool(context.finetuned))
        if folder.exists():
            folder.rename(old)  # a kill while it is deleted, or before, leaves one of them whole
        part.rename(folder)
        context.progress(f"the last good {' and '.join(what)} are in {folder}")
    except (ConvertError, StageError, OSError) as error:
        context.warnings.append(f"what was learnt so far could not be written to {folder}: {error}")
        context.progress(f"warning: {context.warnings[-1]}")
    finally:
        shutil.rmtree(part, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def remove_last_good(run: Path) -> None:
    """Delete `last-good/` of a run whose exports are verified: they replace it."""
    folder, old = _places(run)
    with suppress(FileNotFoundError):
        os.replace(folder, old)  # so that a kill leaves no half of it under its name
    shutil.rmtree(old, ignore_errors=True)


def _written(context: ExportContext, contents: Contents, folder: Path, model: bool) -> list[str]:
    """What was written into the folder, in embeddings."""
    folder.mkdir(parents=True)
    what = []
    if contents.embeddings:
        write_standalone(context, contents.embeddings, folder / f"{context.recipe.name}_embeddings")
        what.append("vectors")
    if contents.rest:
        write_plain(context, contents.rest, folder / f"{context.recipe.name}.safetensors")
        what.append("LoRA")
    if model:
        write_model_folder(context.model.pipe, folder / f"{context.recipe.name}_model", context.model.dtype)
        what.append("weights")
    return what
