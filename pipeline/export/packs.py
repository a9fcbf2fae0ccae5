"""Packs: many embeddings in one file or in several, as an archive and for programs that read such files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ...converters.atomic import Batch, batch
from ...converters.bundle import bundle
from ...converters.embedding import Contents, Embedding
from ...converters.errors import ConvertError
from ...converters.programs import Program, reads, reads_lora
from ...converters.read import identify
from ...converters.stored import Stored
from ...converters.tensor import RawTensor, same
from ...converters.write import FORMAT, Written, layout_for, write_contents
from .artefacts import note
from .context import ExportContext
from .standalone import widths


@dataclass(frozen=True)
class Pack:
    """Several embeddings in one file, or for diffusers in one file for each of the text encoders `keys`."""

    files: tuple[Written, ...]
    embeddings: tuple[str, ...]
    keys: tuple[str, ...] = ()


def write_packs(
    context: ExportContext,
    embeddings: Sequence[Embedding],
    folder: Path,
    most: int | None,
    program: Program | None = None,
) -> list[Pack]:
    """Write the embeddings in files of at most `most` embeddings (None: all in one); without `program` as a bundle.

    An embedding keeps its name and metadata, so that `split` gives the same file as an export without packs. Writes
    all files or none. Raises ConvertError when a file, read as its program reads it, does not contain every embedding,
    bit for bit.
    """
    packs = []
    with batch(overwrite=True) as files:  # what an interrupted export left
        for number, part in enumerate(_parts(embeddings, most), 1):
            stem = f"{context.recipe.name}_embeddings" + ("" if most is None else f"-{number:04d}")
            packs.append(_add(context, files, part, folder, stem, program))
    for pack in packs:
        for written in pack.files:
            note(context, written.path, "pack", program, written, embeddings=pack.embeddings)
    return packs


def packed_vectors(path: Path, embedding: str) -> dict[str, RawTensor]:
    """Encoder key to vectors of one embedding of a pack without a program."""
    return next(one.vectors for one in identify(path).contents.embeddings if one.name == embedding)


def _parts(embeddings: Sequence[Embedding], most: int | None) -> Iterator[Sequence[Embedding]]:
    size = most or max(1, len(embeddings))
    return (embeddings[start : start + size] for start in range(0, len(embeddings), size))


def _add(
    context: ExportContext,
    files: Batch,
    embeddings: Sequence[Embedding],
    folder: Path,
    stem: str,
    program: Program | None,
) -> Pack:
    path, names = folder / f"{stem}.safetensors", tuple(embedding.name for embedding in embeddings)
    if program is None:
        [made] = write_contents(files, path, Contents(tuple(embeddings), {}, dict(FORMAT)), "bundle")
        return Pack((made._replace(trigger=""),), names)
    if program.several == "bundle":
        return Pack((_as_lora(context, files, embeddings, path, program),), names)
    parts = dict(_per_encoder(context, files, embeddings, path, program))
    return Pack(tuple(parts.values()), names, tuple(parts))


def _as_lora(
    context: ExportContext, files: Batch, embeddings: Sequence[Embedding], path: Path, program: Program
) -> Written:
    """A LoRA file with embeddings and without layers."""
    facts = {**FORMAT, "ss_base_model_version": context.model.family.base_model_version, "ss_output_name": path.stem}
    contents = bundle(Contents(metadata=facts), embeddings, widths=widths(context))
    check = partial(_check_lora, context=context, path=path, program=program, embeddings=embeddings)
    [made] = write_contents(files, path, contents, "bundle", program.name, check=check)
    return made._replace(trigger=f"<lora:{path.stem}:1> {embeddings[0].name}")


def _check_lora(
    tensors: dict[str, RawTensor], metadata: dict[str, str], *, context: ExportContext, path: Path, program: Program,
    embeddings: Sequence[Embedding],
) -> None:  # fmt: skip
    reading = reads_lora(program.name, Stored(path, tensors, metadata), widths(context))
    if reading.refusal:
        raise ConvertError(f"{path}: {program.title} would not load it: {reading.refusal}")
    for embedding in embeddings:
        found = reading.embeddings.get(embedding.name, {})
        if not found or any(not same(raw, embedding.vectors[key]) for key, raw in found.items()):
            raise ConvertError(f"{path}: {program.title} would read other values of {embedding.name!r}")


def _per_encoder(
    context: ExportContext, files: Batch, embeddings: Sequence[Embedding], path: Path, program: Program
) -> Iterator[tuple[str, Written]]:
    """A file `{embedding: vectors}` for each text encoder; a script passes each entry to the program's loader."""
    _, layout = layout_for(program.name, context.model.family)
    for number, (key,) in enumerate(layout.files, 1):
        own = [
            Embedding(embedding.name, {key: embedding.vectors[key]}, embedding.metadata)
            for embedding in embeddings
            if key in embedding.vectors
        ]
        place = path if number == 1 else path.with_stem(f"{path.stem}_{number}")
        check = partial(_check_entries, path=place, program=program, embeddings=own, sizes={key: widths(context)[key]})
        if own:
            contents = Contents(tuple(own), {}, dict(FORMAT))
            [made] = write_contents(files, place, contents, "diffusers", program.name, check=check)
            yield key, made._replace(trigger=embeddings[0].name)


def _check_entries(
    tensors: dict[str, RawTensor], metadata: dict[str, str], *, path: Path, program: Program,
    embeddings: Sequence[Embedding], sizes: dict[str, int],
) -> None:  # fmt: skip
    [key] = sizes
    for embedding in embeddings:
        entry = {name: raw for name, raw in ((embedding.name, tensors.get(embedding.name)),) if raw is not None}
        reading = reads(program.name, Stored(path, entry), sizes) if entry else None
        found = reading.embeddings.get(embedding.name, {}).get(key) if reading is not None else None
        if found is None or not same(found, embedding.vectors[key]):
            raise ConvertError(f"{path}: {program.title} would read other values of {embedding.name!r}")
