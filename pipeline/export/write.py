"""Everything that an export stage writes, and the last good state of a run that stopped or failed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from ...converters.embedding import Contents
from ...converters.errors import ConvertError
from ...converters.programs import programs
from ...converters.write import Written
from ..errors import StageError
from ..models.checkpoint import checkpoint_metadata
from ..recipe.options import ExportOptions
from ..tensors import DTYPES
from .artefacts import count_verified, note
from .context import ExportContext, Exports
from .lora import write_plain
from .lora_layouts import settled
from .packs import write_packs
from .program import Made, export_for
from .standalone import with_metadata, with_outputs, write_standalone
from .tensors import in_dtype


def write_exports(
    context: ExportContext, contents: Contents, folder: Path, options: ExportOptions
) -> tuple[Contents, Exports]:
    """Write what the export stage's options ask for into a folder; the model must have no injected embeddings.

    Returns what was written, in its dtype, and where the files are.
    """
    if not contents.embeddings and not contents.rest and not context.finetuned:
        raise StageError("there is no embedding, LoRA or fine-tuned model to export")
    ready = in_dtype(with_metadata(context, replace(contents, rest=settled(contents.rest))), options.dtype, context)
    each, most = options.files == "each", options.pack_size if options.files == "pack" else None
    whole = with_outputs(context, ready)
    standalone, alone = _standalone(context, whole, folder / f"{context.recipe.name}_embeddings", each=each, most=most)
    made = replace(
        _shared_files(context, ready, folder, _model_forms(context, options.model), options.model_dtype),
        embeddings=alone,
    )
    declared = len(set(standalone.values())) + sum(path is not None for path in (made.lora, made.folder, made.file))
    for target in options.targets:
        declared += export_for(
            context, whole, programs()[target], folder / target, made, bundle=options.bundle, each=each, most=most
        )
    return ready, Exports(standalone, made.lora, declared, count_verified(context, declared))


def _standalone(
    context: ExportContext, ready: Contents, folder: Path, *, each: bool, most: int | None
) -> tuple[dict[str, Path], dict[str, Written]]:
    """Write the standalone embeddings or packs: the file of each embedding, and what was written of each."""
    if each:
        written = write_standalone(context, ready.embeddings, folder)
        for embedding, one in zip(ready.embeddings, written, strict=True):
            note(context, one.path, "embedding", programs().get(one.program or ""), one, embedding.name)
        alone = {embedding.name: one for embedding, one in zip(ready.embeddings, written, strict=True)}
        return {name: one.path for name, one in alone.items()}, alone
    packs = write_packs(context, ready.embeddings, folder, most)
    return {embedding: pack.files[0].path for pack in packs for embedding in pack.embeddings}, {}


def _shared_files(
    context: ExportContext, ready: Contents, folder: Path, model: Sequence[str], model_dtype: str
) -> Made:
    """Write what all programs share: the plain LoRA and the fine-tuned model."""
    name, family, dtype = context.recipe.name, context.model.family, DTYPES[model_dtype]
    lora = whole = file = None
    if ready.rest:
        lora = folder / f"{name}.safetensors"
        write_plain(context, ready.rest, lora)
        note(context, lora, "lora")
    if "folder" in model:
        from .model import write_model_folder  # which a run without a fine-tune does not need

        whole = folder / f"{name}_model"
        context.progress(f"writing the model as a diffusers folder in {model_dtype}")
        write_model_folder(context.model.pipe, whole, dtype, tokenizers=context.model.tokenizer_files)
        for path in sorted(path for path in whole.rglob("*") if path.is_file()):
            note(context, path, "model")
    if "file" in model:
        from .model import write_model_file

        file = folder / f"{name}_model.safetensors"
        context.progress(f"writing the model as one checkpoint file in {model_dtype}")
        base = context.model.path
        source = checkpoint_metadata(base) if base is not None and base.is_file() else {}
        context.warnings.extend(write_model_file(context.model.pipe, family, file, dtype, title=name, source=source))
        note(context, file, "model")
    return Made(lora, whole, file)


def _model_forms(context: ExportContext, model: Sequence[str]) -> Sequence[str]:
    """The forms of the fine-tuned model: as asked, or a folder where checkpoint files are not supported."""
    if not context.finetuned:
        return ()
    if "file" in model and not context.model.family.checkpoint:
        title = context.model.family.title
        context.warnings.append(f"checkpoint files are not supported for {title}; the model is written as a folder")
        return ("folder",)
    return model


LAST_GOOD = "last-good"


def _folders(run: Path) -> tuple[Path, Path]:
    """The folder, and its name while it is being deleted."""
    return run / LAST_GOOD, run / f".{LAST_GOOD}.old"


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
        embeddings = with_outputs(context, contents).embeddings
        write_standalone(context, embeddings, folder / f"{context.recipe.name}_embeddings")
        what.append("vectors")
    if contents.rest:
        write_plain(context, contents.rest, folder / f"{context.recipe.name}.safetensors")
        what.append("LoRA")
    if model:
        from .model import write_model_folder

        write_model_folder(context.model.pipe, folder / f"{context.recipe.name}_model", context.model.dtype)
        what.append("weights")
    return what
