"""One embedding as one standalone file, in the dialect that most programs read, with its metadata."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from ...converters.atomic import Batch, batch
from ...converters.embedding import Contents, Embedding
from ...converters.errors import ConvertError
from ...converters.families import Family
from ...converters.names import distinct_stems
from ...converters.programs import programs
from ...converters.tensor import RawTensor
from ...converters.write import Written, add_embeddings, layout_for, stems_for, write_contents
from ..tensors import vectors_of_all
from .context import ExportContext

AT_ONCE = 256  # embeddings that are measured together: all of them in float64 would fill memory


def with_metadata(context: ExportContext, contents: Contents) -> Contents:
    """The embeddings with metadata that says what made them; two runs of the same recipe write the same.

    A model is named by its hub id, one on this machine by its file or folder name alone: its path is private.
    """
    facts = {
        "pivotune.recipe": context.recipe.name,
        "pivotune.seed": str(context.recipe.seed),
        "pivotune.model": _name(context.recipe.model.base),
        "pivotune.family": context.model.family.name,
    }
    if context.recipe.model.clip_skip > 1:
        facts["pivotune.clip_skip"] = str(context.recipe.model.clip_skip)
    distances = _distances(context, contents.embeddings)

    def own(embedding: Embedding) -> dict[str, str]:
        initial_text = embedding.metadata.get("initial_text", "")
        distance = ", ".join(distances[embedding.name])
        return facts | {"pivotune.initial_text": initial_text, "pivotune.distance": distance}

    embeddings = tuple(replace(embedding, metadata=own(embedding)) for embedding in contents.embeddings)
    return replace(contents, embeddings=embeddings)


def _distances(context: ExportContext, embeddings: Sequence[Embedding]) -> dict[str, list[str]]:
    """For each embedding and encoder a text: the encoder's key and how far each vector is from its initial value.

    In float64: four digits are the same whichever embeddings are measured together.
    """
    initial = context.initial.by_name
    texts: dict[str, list[str]] = {embedding.name: [] for embedding in embeddings}
    for encoder in context.model.encoders:
        present = [embedding for embedding in embeddings if encoder.key in embedding.vectors]
        for first in range(0, len(present), AT_ONCE):
            part = present[first : first + AT_ONCE]
            now = vectors_of_all(part, encoder.key, encoder.width)
            before = vectors_of_all([initial[embedding.name] for embedding in part], encoder.key, encoder.width)
            distances = (torch.cat(now).double() - torch.cat(before).double()).norm(dim=1)
            for embedding, own in zip(part, distances.split([len(rows) for rows in now]), strict=True):
                texts[embedding.name].append(" ".join([encoder.key, *(f"{one:.4g}" for one in own.tolist())]))
    return texts


def _name(base: str) -> str:
    return Path(base).name if Path(base).exists() or Path(base).is_absolute() else base


# Programs whose dialect standalone files have: the first that can contain the whole embedding. All programs but
# OneTrainer (sd1, sd2) and diffusers read A1111's dialect; ComfyUI's has T5 too, and embeddings that have vectors for
# some text encoders only.
STANDALONE = ("a1111", "comfyui")
ONETRAINER = "onetrainer"  # the one program that uses output embeddings


def write_standalone(context: ExportContext, embeddings: Sequence[Embedding], folder: Path) -> list[Written]:
    """Write each embedding, as from `with_outputs`, into a file of its own and read it back; all of them or none.

    Raises ConvertError when no file would give the same vectors.
    """
    if not embeddings:
        return []
    folder.mkdir(parents=True, exist_ok=True)
    stems = standalone_stems(context, [embedding.name for embedding in embeddings])
    program_of: dict[tuple[object, ...], str] = {}  # embeddings with the same shapes have the same program
    written = []
    with batch(overwrite=True) as files:  # what an interrupted export left
        for embedding in embeddings:
            shapes = tuple((key, raw.shape) for key, raw in embedding.vectors.items())
            if shapes not in program_of:
                program_of[shapes] = program_for(context, embedding, folder)
            written += _add(context, files, embedding, folder, stems, program_of[shapes])
    return written


def add_standalone(
    context: ExportContext, files: Batch, embedding: Embedding, folder: Path, stems: Mapping[str, str]
) -> list[Written]:
    """As `write_standalone`, for one embedding of a batch of files."""
    return _add(context, files, embedding, folder, stems, program_for(context, embedding, folder))


def _add(
    context: ExportContext, files: Batch, embedding: Embedding, folder: Path, stems: Mapping[str, str], program: str
) -> list[Written]:
    """One file for a program, or, without one, with the encoders' keys as the names of its tensors."""
    if not program:
        contents = Contents((embedding,), {}, dict(embedding.metadata))
        return write_contents(files, folder / f"{stems[embedding.name]}.safetensors", contents, "encoders")
    return add_embeddings(
        files, [embedding], program, context.model.family, folder, widths=widths(context), stems=stems
    )


def standalone_stems(context: ExportContext, names: Sequence[str]) -> dict[str, str]:
    """The file names of all these embeddings, without duplicates."""
    family = context.model.family
    able = next((name for name in STANDALONE if family.name in programs()[name].layouts), "")
    if able:
        return stems_for(names, able, family)
    strictest = programs()[STANDALONE[0]]
    return distinct_stems(names, strictest.characters, strictest.reserved, [""])


def program_for(context: ExportContext, embedding: Embedding, folder: Path) -> str:
    """The first program of `STANDALONE` whose file would hold all of the embedding; ConvertError where there is
    none. Empty for a family of which none of them loads embeddings.
    """
    if not any(context.model.family.name in programs()[program].layouts for program in STANDALONE):
        return ""
    if any(key.endswith("_out") for key in embedding.vectors):
        return ONETRAINER
    why: ConvertError | None = None
    for program in STANDALONE:
        try:
            _, layout = layout_for(program, context.model.family)
            if len(layout.files) == 1 and embedding.vectors.keys() <= layout.files[0].keys():
                with batch(overwrite=True, dry=True) as files:
                    add_embeddings(files, [embedding], program, context.model.family, folder, widths=widths(context))
                return program
        except ConvertError as error:
            why = why or error
    raise why or ConvertError(f"{embedding.name}: no supported program has {', '.join(embedding.vectors)} in one file")


def standalone_keys(family: Family, encoder: str) -> list[str]:
    """The names that an encoder's tensor may have in a file that `write_standalone` wrote."""
    layouts = (programs()[name].layouts.get(family.name) for name in (*STANDALONE, ONETRAINER))
    named = [layout.files[0][encoder] for layout in layouts if layout is not None and encoder in layout.files[0]]
    return list(dict.fromkeys([*named, encoder]))


def standalone_vectors(tensors: Mapping[str, RawTensor], family: Family) -> dict[str, RawTensor]:
    """Encoder key to vectors of a file that `write_standalone` wrote."""
    return _named(tensors, family, "")


def standalone_outputs(tensors: Mapping[str, RawTensor], family: Family) -> dict[str, RawTensor]:
    """As `standalone_vectors`, of an output embedding: the vectors that replace the output of each encoder."""
    return _named(tensors, family, "_out")


def _named(tensors: Mapping[str, RawTensor], family: Family, end: str) -> dict[str, RawTensor]:
    names = {
        key: [name + end for name in standalone_keys(family, key) if name + end in tensors] for key in family.widths
    }
    return {key: tensors[found[0]] for key, found in names.items() if found}


def with_outputs(context: ExportContext, contents: Contents) -> Contents:
    """Output embeddings as in OneTrainer's files: zeros as the input vectors, and the trained ones as `<key>_out`."""
    outputs = {encoder.key for encoder in context.model.encoders if encoder.output is not None}

    def own(embedding: Embedding) -> Embedding:
        vectors = {}
        for key, raw in embedding.vectors.items():
            vectors[key] = RawTensor(raw.dtype, raw.shape, bytes(len(raw.data))) if key in outputs else raw
            if key in outputs:
                vectors[f"{key}_out"] = raw
        return replace(embedding, vectors=vectors)

    embeddings = [own(one) if one.name in context.recipe.outputs else one for one in contents.embeddings]
    return replace(contents, embeddings=tuple(embeddings))


def widths(context: ExportContext) -> dict[str, int]:
    """Encoder key to width, of the loaded model (a small model of a family has other widths)."""
    return {encoder.key: encoder.width for encoder in context.model.encoders}
