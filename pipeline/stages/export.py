"""Stage `export`: embeddings, LoRA and fine-tuned model as files for each program; a file counts once it was read
back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...converters.embedding import Contents
from ...converters.programs import programs
from ...converters.write import Written
from ..errors import StageError
from ..export.artefacts import count, count_embeddings, note
from ..export.finished import finished_facts
from ..export.lora import write_plain
from ..export.lora_layouts import settled
from ..export.model import write_model_file, write_model_folder
from ..export.packs import write_packs
from ..export.program import Made, export_for
from ..export.standalone import with_metadata, write_standalone
from ..export.tensors import DTYPES, in_dtype
from ..recipe.options import ExportOptions
from ..run.context import Run


def export(run: Run, contents: Contents, options: ExportOptions) -> Contents:
    """Write `exports/`: `<name>_embeddings/<embedding>.safetensors`, the LoRA, and a folder for each target program.

    With `files` `pack` or `one` there are files of many embeddings instead (see `export.packs`).

    A run that trained weights of the model itself (`Run.finetuned`) gives `<name>_model/` and
    `<name>_model.safetensors` too, as `model` says. With `bundle`, programs that read embeddings inside LoRAs get them
    so. Raises ConvertError when a program cannot hold an embedding or a file, read as its program reads it, does not
    give the vectors that went in.
    """
    run.eject()
    ready, facts = write_exports(run, contents, run.folder / "exports", options)
    run.data |= facts | count_embeddings(run, facts["standalone"]) | finished_facts(run, contents)
    return ready


def write_exports(
    run: Run, contents: Contents, folder: Path, options: ExportOptions
) -> tuple[Contents, dict[str, Any]]:
    """Write what `export` says into a folder, from a model that holds no embeddings; also for saves during training.

    Returns what was written and, for `Run.data`, where the plain files are and how many were verified.
    """
    if not contents.embeddings and not contents.rest and not run.finetuned:
        raise StageError("there is no embedding, LoRA or fine-tuned model to export")
    ready = in_dtype(with_metadata(run, replace(contents, rest=settled(contents.rest))), options.dtype, run)
    each, most = options.files == "each", options.pack_size if options.files == "pack" else None
    standalone, alone = _standalone(run, ready, folder / f"{run.recipe.name}_embeddings", each=each, most=most)
    made = replace(_made(run, ready, folder, _ways(run, options.model), options.model_dtype), embeddings=alone)
    declared = len(set(standalone.values())) + sum(path is not None for path in (made.lora, made.folder, made.file))
    for target in options.targets:
        declared += export_for(
            run, ready, programs()[target], folder / target, made, bundle=options.bundle, each=each, most=most
        )
    return ready, {"standalone": standalone, "lora": made.lora, **count(run, declared)}


def _standalone(
    run: Run, ready: Contents, folder: Path, *, each: bool, most: int | None
) -> tuple[dict[str, Path], dict[str, Written]]:
    """Embeddings by themselves, for no program in particular: where each is, in a pack or its own file (returned
    too).
    """
    if each:
        written = write_standalone(run, ready.embeddings, folder)
        for embedding, one in zip(ready.embeddings, written, strict=True):
            note(run, one.path, "embedding", programs()[one.program], one, embedding.name)
        alone = {embedding.name: one for embedding, one in zip(ready.embeddings, written, strict=True)}
        return {name: one.path for name, one in alone.items()}, alone
    packs = write_packs(run, ready.embeddings, folder, most)
    return {embedding: pack.files[0].path for pack in packs for embedding in pack.embeddings}, {}


def _made(run: Run, ready: Contents, folder: Path, model: Sequence[str], model_dtype: str) -> Made:
    """What serves all programs: the plain LoRA and the fine-tuned model."""
    name, family, dtype = run.recipe.name, run.model.family, DTYPES[model_dtype]
    lora = whole = file = None
    if ready.rest:
        lora = folder / f"{name}.safetensors"
        write_plain(run, ready.rest, lora)
        note(run, lora, "lora")
    if "folder" in model:
        whole = folder / f"{name}_model"
        run.progress(f"writing the model as a diffusers folder in {model_dtype}")
        write_model_folder(run.model.pipe, whole, dtype, tokenizers=run.model.tokenizer_files)
        for path in sorted(path for path in whole.rglob("*") if path.is_file()):
            note(run, path, "model")
    if "file" in model:
        file = folder / f"{name}_model.safetensors"
        run.progress(f"writing the model as one checkpoint file in {model_dtype}")
        run.warnings += write_model_file(run.model.pipe, family, file, dtype, title=name)
        note(run, file, "model")
    return Made(lora, whole, file)


def _ways(run: Run, model: Sequence[str]) -> Sequence[str]:
    """How the fine-tuned model is written: as asked, or as a folder where its family has no checkpoint file here."""
    if not run.finetuned:
        return ()
    if "file" in model and not run.model.family.checkpoint:
        title = run.model.family.title
        run.warnings.append(f"no layout of a checkpoint file is known for {title}: the model is written as a folder")
        return ("folder",)
    return model
