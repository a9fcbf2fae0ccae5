"""Stage `export`: embeddings, LoRA and fine-tuned model as files for each program, each verified."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ...converters.embedding import Contents
from ..export.artefacts import count_embeddings
from ..export.finished import finished_facts
from ..export.write import write_exports
from ..run.context import RunContext, RunState, export_context


def export(
    context: RunContext,
    state: RunState,
    contents: Contents,
    *,
    targets: Sequence[str] = ("a1111", "comfyui", "diffusers"),
    bundle: bool = True,
    files: str = "each",
    pack_size: int = 1000,
    dtype: str = "float32",
    model: Sequence[str] = ("folder", "file"),
    model_dtype: str = "float16",
) -> Contents:
    """Write `exports/`: `<name>_embeddings/<embedding>.safetensors`, the LoRA, and a folder for each target program.

    With `files` `pack` or `one` there are files of many embeddings instead (see `export.packs`). With `bundle`,
    programs that read embeddings inside LoRAs get them so. A run that fine-tuned the model also writes
    `<name>_model/` and `<name>_model.safetensors`, as `model` asks for. Raises ConvertError when a program cannot
    hold an embedding, or when a file, read as its program reads it, differs from what was written.
    """
    state.eject(context.model)
    exporting = export_context(context, state)
    ready, exports = write_exports(
        exporting, contents, context.folder / "exports", targets=targets, bundle=bundle, files=files,
        pack_size=pack_size, dtype=dtype, model=model, model_dtype=model_dtype,
    )  # fmt: skip
    state.exports = replace(
        exports,
        embeddings=count_embeddings(exporting, exports.standalone),
        finished=finished_facts(exporting, contents),
    )
    return ready
