"""Stage `export`: embeddings, LoRA and fine-tuned model as files for each program, each verified."""

from __future__ import annotations

from dataclasses import replace

from ...converters.embedding import Contents
from ..export.artefacts import count_embeddings
from ..export.finished import finished_facts
from ..export.write import write_exports
from ..recipe.options import ExportOptions
from ..run.context import RunContext, RunState, export_context


def export(context: RunContext, state: RunState, contents: Contents, options: ExportOptions) -> Contents:
    """Write `exports/`: `<name>_embeddings/<embedding>.safetensors`, the LoRA, and a folder for each target program.

    With `files` `pack` or `one` there are files of many embeddings instead (see `export.packs`). With `bundle`,
    programs that read embeddings inside LoRAs get them so. A run that fine-tuned the model also writes
    `<name>_model/` and `<name>_model.safetensors`, as `model` asks for. Raises ConvertError when a program cannot
    hold an embedding, or when a file, read as its program reads it, differs from what was written.
    """
    state.eject(context.model)
    exporting = export_context(context, state)
    ready, exports = write_exports(exporting, contents, context.folder / "exports", options)
    state.exports = replace(
        exports,
        embeddings=count_embeddings(exporting, exports.standalone),
        finished=finished_facts(exporting, contents),
    )
    return ready
