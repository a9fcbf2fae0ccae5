"""The trained LoRA as files: plain, and with bundled embeddings; each file is verified."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ...converters import safetensors_file
from ...converters.bundle import bundle, embeddings_of, tensors_of
from ...converters.embedding import Contents, Embedding
from ...converters.errors import ConvertError
from ...converters.lora import lora_metadata, write_lora
from ...converters.programs import Program, reads_lora
from ...converters.programs.loras import applied
from ...converters.slots import slots
from ...converters.stored import Stored
from ...converters.tensor import RawTensor, same
from ...converters.write import own_metadata
from ..tensors import from_raw
from .context import ExportContext
from .lora_layouts import has_dora
from .standalone import widths


def write_plain(
    context: ExportContext,
    tensors: Mapping[str, RawTensor],
    path: Path,
    *,
    facts: Mapping[str, RawTensor] | None = None,
) -> None:
    """Write the LoRA without embeddings. `facts` is the LoRA in kohya's layout, where `tensors` is not.

    Raises ConvertError when the file, read again, differs.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    write_lora(path, tensors, _metadata(context, facts or tensors), overwrite=True)
    _compare(path, safetensors_file.read(path)[0], tensors)


def write_bundle(
    context: ExportContext,
    tensors: Mapping[str, RawTensor],
    embeddings: Iterable[Embedding],
    path: Path,
    program: Program,
    *,
    facts: Mapping[str, RawTensor] | None = None,
) -> None:
    """Write the LoRA with the embeddings as `bundle_emb.<name>.<key>` and each embedding's own metadata.

    Raises ConvertError when the file, read again, differs, or when `program` would not find the embeddings in it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = bundle(Contents(rest=dict(tensors)), embeddings, widths=widths(context))
    own = whole.embeddings
    write_lora(path, tensors_of(whole), _metadata(context, facts or tensors) | own_metadata(own), overwrite=True)
    found, rest = embeddings_of(safetensors_file.read(path)[0])
    _compare(path, rest, tensors)
    back = {embedding.name: embedding.vectors for embedding in found}
    for embedding in own:
        found_of = back.get(embedding.name, {})
        if any(key not in found_of or not same(found_of[key], raw) for key, raw in slots(embedding.vectors).items()):
            raise ConvertError(f"{path}: the embedding {embedding.name!r} differs when the file is read again")
    seen = check_reading(context, path, program)
    lost = [embedding.name for embedding in own if embedding.name not in seen]
    if lost:
        raise ConvertError(f"{path}: {program.title} would not find {', '.join(map(repr, lost))} in it")


def left_out(context: ExportContext, path: Path, program: Program) -> list[str]:
    """What a program leaves out of a LoRA file, or that this is not known."""
    family = context.model.family
    layers = applied(program, Stored(path, *safetensors_file.read(path)), family)
    if layers is None:
        return [f"it is not known which LoRAs for {family.title} {program.title} applies"]
    return [f"{program.title}: {note}" for note in (layers.refusal, *layers.notes) if note]


def check_reading(context: ExportContext, path: Path, program: Program) -> set[str]:
    """The embeddings that a program finds in a LoRA file; ConvertError when it would reject the file."""
    stored = Stored(path, *safetensors_file.read(path))
    reading = reads_lora(program.name, stored, widths(context))
    if reading.refusal:
        raise ConvertError(f"{path}: {program.title} would not load it: {reading.refusal}")
    return set(reading.embeddings)


def _metadata(context: ExportContext, tensors: Mapping[str, RawTensor]) -> dict[str, str]:
    ranks = {raw.shape[0] for name, raw in tensors.items() if name.endswith(".lora_down.weight")}
    alphas = {float(from_raw(raw).float()) for name, raw in tensors.items() if name.endswith(".alpha")}
    family, scheduler = context.model.family, context.model.pipe.scheduler.config
    facts = lora_metadata(
        family, title=context.recipe.name, rank=_only(ranks), alpha=_only(alphas), dora=has_dora(tensors),
        prediction=scheduler.get("prediction_type", "") if family.objective == "diffusion" else "",
    )  # fmt: skip
    return facts | {"pivotune.recipe": context.recipe.name, "pivotune.seed": str(context.recipe.seed)}


def _only(values: set[Any]) -> str:
    """The common value of all modules, or what kohya's scripts write where they differ."""
    return str(next(iter(values))) if len(values) == 1 else "Dynamic"


def _compare(path: Path, found: Mapping[str, RawTensor], meant: Mapping[str, RawTensor]) -> None:
    wrong = [name for name, raw in meant.items() if name not in found or not same(found[name], raw)]
    if wrong or len(found) != len(meant):
        raise ConvertError(
            f"{path}: the LoRA differs when the file is read again ({wrong[:3] or 'additional tensors'})"
        )
