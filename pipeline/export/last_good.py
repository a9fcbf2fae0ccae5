"""The last good state of a run that stopped or failed, as files, so that hours of training are not lost."""

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


def _folders(run: Path) -> tuple[Path, Path]:
    """The folder, and its name while it is being deleted."""
    return run / FOLDER, run / f".{FOLDER}.old"


def keep_last_good(context: ExportContext, contents: Contents, *, model: bool) -> None:
    """Write embeddings and LoRA of the last good step to `last-good/` of the run folder; replaces an older one.

    Names are as in `exports/`: the embeddings are in `<name>_embeddings/`, so that a LoRA may have an embedding's name.
    With `model` a fine-tuned model is written too, as `<name>_model/` in its own dtype; embeddings and LoRA must be
    removed from it before. An error is only a warning: it must not hide why the run ended.
    """
    folder, old = _folders(context.folder)
    part = old.with_suffix(".part")
    shutil.rmtree(part, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)
    try:
        what = _written(context, contents, part, model and bool(context.finetuned))
        if folder.exists():
            folder.rename(old)  # a kill at any moment leaves one of them complete
        part.rename(folder)
        context.progress(f"saved the last good {' and '.join(what)} in {folder}")
    except (ConvertError, StageError, OSError) as error:
        context.warnings.append(f"the last good state could not be written to {folder}: {error}")
        context.progress(f"warning: {context.warnings[-1]}")
    finally:
        shutil.rmtree(part, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def remove_last_good(run: Path) -> None:
    """Delete `last-good/`: the verified exports replace it."""
    folder, old = _folders(run)
    with suppress(FileNotFoundError):
        os.replace(folder, old)  # a kill leaves no partial folder with that name
    shutil.rmtree(old, ignore_errors=True)


def _written(context: ExportContext, contents: Contents, folder: Path, model: bool) -> list[str]:
    """Write the folder; return the names of what it contains."""
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
