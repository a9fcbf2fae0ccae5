"""Writing an embedding for a program: its own dialect, read back as the program reads it before the file gets its
name.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from . import safetensors_file
from .atomic import Batch, batch
from .bundle import embeddings_of, split
from .dialects import DIALECTS
from .dialects.keyed import EMBEDDING, EMBEDDINGS
from .embedding import Contents, Embedding, loaded
from .errors import ConvertError
from .families import Family
from .names import distinct_stems
from .programs import Layout, Program, programs, reads
from .slots import slots
from .stored import Stored
from .tensor import READABLE, RawTensor, is_finite, is_zero, same

FORMAT = {"format": "pt"}  # without it some loaders built on transformers refuse a file


class Written(NamedTuple):
    """One file that was written: for which program, what the user types there, and what could not go in.

    `prompts` is what the user types in each program, for a file that is for no one program.
    """

    path: Path
    program: str
    dialect: str
    trigger: str
    losses: tuple[str, ...] = ()
    prompts: Mapping[str, str] = MappingProxyType({})


def write_embedding(
    embedding: Embedding,
    program: str,
    family: Family,
    folder: Path,
    *,
    widths: dict[str, int] | None = None,
    overwrite: bool = False,
) -> list[Written]:
    """Write one embedding; `write_embeddings` says more."""
    return write_embeddings([embedding], program, family, folder, widths=widths, overwrite=overwrite)


def write_embeddings(
    embeddings: Sequence[Embedding],
    program: str,
    family: Family,
    folder: Path,
    *,
    widths: dict[str, int] | None = None,
    overwrite: bool = False,
) -> list[Written]:
    """Write every embedding in the dialect that `program` reads best for `family`, all of them or none.

    `widths` replaces those of the family, for a model of its shape and other sizes. Raises ConvertError if the
    program has no use for an embedding, if a file would be lost, or if the file, read as the program reads it, does not
    give the vectors that went in.
    """
    with batch(overwrite=overwrite) as files:
        return add_embeddings(files, embeddings, program, family, folder, widths=widths)


def add_embeddings(
    files: Batch,
    embeddings: Sequence[Embedding],
    program: str,
    family: Family,
    folder: Path,
    *,
    widths: dict[str, int] | None = None,
    stems: Mapping[str, str] | None = None,
) -> list[Written]:
    """As `write_embeddings`, for files that appear together with others of a batch.

    `stems` names the files of embeddings that are some of many (see `stems_for`).
    """
    target, layout = layout_for(program, family)
    suffixes = _suffixes(layout)
    if stems is None:
        stems = stems_for((one.name for one in embeddings), program, family)
    written = []
    sizes, place = widths or family.widths, Path(folder)
    known: dict[tuple, tuple[str, ...]] = {}  # of ten thousand embeddings, most have the same vectors
    for embedding in loaded(embeddings):
        _check_values(embedding, target)
        signs = tuple([(key, tensor.shape[0]) for key, tensor in embedding.vectors.items()])
        losses = known.get(signs)
        if losses is None:
            losses = known[signs] = _losses(dict(signs), target, layout, family)
        for suffix, keys in zip(suffixes, layout.files, strict=True):
            stem = stems[embedding.name] + suffix
            path = place / f"{stem}.safetensors"
            model = sizes if len(layout.files) == 1 else {key: size for key, size in sizes.items() if key in keys}
            _add_file(files, path, embedding, target, keys, model)
            trigger = target.prompted(stem, embedding.name)
            written.append(Written(path, program, layout.dialect, trigger, losses))
    return written


def stems_for(names: Iterable[str], program: str, family: Family) -> dict[str, str]:
    """What a program calls the files of all these embeddings, so that none meet, whenever each is written."""
    target, layout = layout_for(program, family)
    return distinct_stems(names, target.characters, target.reserved, _suffixes(layout))


def _suffixes(layout: Layout) -> list[str]:
    return [f"_{number}" if number > 1 else "" for number in range(1, len(layout.files) + 1)]


def strictly(written: Sequence[Written]) -> None:
    """Raises ConvertError if something could not go in: what `--strict` asks for, before a batch ends."""
    lost = [f"{item.path.name}: {loss}" for item in written for loss in item.losses]
    if lost:
        raise ConvertError("something would be lost: " + "; ".join(lost))


def layout_for(program: str, family: Family) -> tuple[Program, Layout]:
    """The program and its way of writing a family; ConvertError that says why there is none."""
    if program not in programs():
        raise ConvertError(f"{program!r} is no program; choose from {', '.join(programs())}")
    target = programs()[program]
    if family.name not in target.layouts:
        why = target.refuses.get(family.name, f"{target.title} loads no embeddings for {family.title}")
        able = [name for name, other in programs().items() if family.name in other.layouts]
        raise ConvertError(f"{why}; programs that do: {', '.join(able) or 'none'}")
    return target, target.layouts[family.name]


def _check_values(embedding: Embedding, target: Program) -> None:
    """Raises ConvertError for values with which no image can be drawn."""
    name, vectors = embedding.name, embedding.vectors
    for key, tensor in vectors.items():
        if 0 in tensor.shape:
            raise ConvertError(f"{name}: {key} has the shape {tensor.shape}, so there is no vector to write")
        if tensor.dtype not in READABLE:
            raise ConvertError(f"{name}: {key} holds {tensor.dtype}, and vectors are floating-point numbers")
        if not is_finite(tensor):
            raise ConvertError(f"{name}: {key} has values that are not finite; no program can draw with it")
        if not _output(key) and is_zero(tensor) and not (target.outputs and f"{key}_out" in vectors):
            hint = " (only its output vectors were trained, which OneTrainer alone can use: --for onetrainer)"
            raise ConvertError(f"{name}: all values of {key} are zero{hint if any(map(_output, vectors)) else ''}")


def _losses(counts: dict[str, int], target: Program, layout: Layout, family: Family) -> tuple[str, ...]:
    """What the program cannot hold or will misuse of an embedding with so many vectors a key, by name."""
    inputs = {key: count for key, count in counts.items() if not _output(key)}
    outputs = counts.keys() - inputs.keys()
    held = {key for keys in layout.files for key in keys}
    losses = [f"{key} is left out: {target.title} has no use for it" for key in inputs if key not in held]
    if not target.outputs:
        losses += [f"{key} is left out: only OneTrainer uses output vectors" for key in sorted(outputs)]
    missing = [key for key in held if key in family.widths and key not in counts]
    losses += [f"{key} is missing: the embedding is silent for that encoder" for key in sorted(missing)]
    different = sorted({count for key, count in inputs.items() if key in held})
    if target.one_count and len(different) > 1:
        losses.append(f"its encoders have {' and '.join(map(str, different))} vectors, which {target.title} mixes up")
    return tuple(losses)


def _add_file(
    files: Batch, path: Path, embedding: Embedding, target: Program, keys: dict[str, str], widths: dict[str, int]
) -> None:
    tensors, meant = {}, {}
    for key, tensor in embedding.vectors.items():
        output = _output(key) and target.outputs
        base = key.removesuffix("_out") if output else key
        if base in keys:
            tensors[keys[base].replace("{embedding}", embedding.name) + ("_out" if output else "")] = tensor
            meant[key] = tensor
    meant = {key: tensor for key, tensor in meant.items() if f"{key}_out" not in meant}
    if not tensors:
        raise ConvertError(f"{embedding.name}: has no vectors that {target.title} could use")
    check = partial(_check, path=path, program=target, meant=meant, widths=widths)
    metadata = _provenance(embedding)
    if files.dry:
        check(tensors, metadata)
    safetensors_file.add(files, path, tensors, metadata, check=check)


def _check(
    tensors: dict[str, RawTensor],
    metadata: dict[str, str],
    *,
    path: Path,
    program: Program,
    meant: dict[str, RawTensor],
    widths: dict[str, int],
) -> None:
    reading = reads(program.name, Stored(path, tensors, metadata), widths)
    if reading.refusal or len(reading.embeddings) != 1:
        raise ConvertError(
            f"{path}: {program.title} would not load it: {reading.refusal or 'it sees several embeddings'}"
        )
    found = next(iter(reading.embeddings.values()))
    for key, tensor in meant.items():
        if key not in found or not same(found[key], tensor):
            raise ConvertError(f"{path}: {program.title} would not read {key} as it was written")


def _provenance(embedding: Embedding) -> dict[str, str]:
    return {**embedding.metadata, **FORMAT, EMBEDDING: embedding.name}


def _output(key: str) -> bool:
    return key.endswith("_out")


Check = Callable[[dict[str, RawTensor], dict[str, str]], None]


def write_contents(
    files: Batch,
    out: Path,
    contents: Contents,
    dialect: str,
    program: str = "",
    losses: tuple[str, ...] = (),
    check: Check | None = None,
) -> list[Written]:
    """Write `contents` in a dialect by name; a file of several embeddings keeps each one's own metadata.

    A bundle is read again as one, or what `check` looks at is what the disk has (`safetensors_file.add`). Raises
    ConvertError where an embedding would not come back.
    """
    if out.suffix.lower() != ".safetensors":
        raise ConvertError(f"{out}: must end in .safetensors, for programs go by the ending")
    tensors, metadata = file_data(contents, dialect)
    if dialect == "bundle" and check is None:
        _check_embeddings(out, contents, tensors)
    safetensors_file.add(files, out, tensors, metadata, check=check, copied=contents.rest)
    return [Written(out, program, dialect, " ".join(embedding.name for embedding in contents.embeddings), losses)]


def file_data(contents: Contents, dialect: str) -> tuple[dict[str, RawTensor], dict[str, str]]:
    """Tensors and metadata of such a file; that of several embeddings keeps each one's own metadata."""
    tensors, metadata = DIALECTS[dialect].write(contents)
    if dialect == "bundle" or len(contents.embeddings) > 1:
        metadata = {**metadata, **own_metadata(contents.embeddings)}
    return tensors, metadata


def own_metadata(embeddings: Iterable[Embedding]) -> dict[str, str]:
    """Metadata of a file of several embeddings that keeps each one's own, the same in whatever order they are given."""
    return {EMBEDDINGS: json.dumps({embedding.name: embedding.metadata for embedding in embeddings}, sort_keys=True)}


def _check_embeddings(out: Path, contents: Contents, tensors: dict[str, RawTensor]) -> None:
    """Raises ConvertError unless the tensors as they will be written give back every embedding bit for bit."""
    parts, others = split(tensors)
    if (
        parts == {embedding.name: embedding.vectors for embedding in contents.embeddings}
        and others.keys() == contents.rest.keys()
    ):
        return  # the very tensors under the very keys: they are read as those that were meant
    found, rest = embeddings_of(tensors)
    meant = {embedding.name: slots(embedding.vectors) for embedding in contents.embeddings}
    if {embedding.name for embedding in found} != meant.keys() or rest.keys() != contents.rest.keys():
        raise ConvertError(f"{out}: its embeddings would not be found again under their names")
    for embedding in found:
        kept = embedding.vectors.keys() == meant[embedding.name].keys()
        if not kept or not all(same(tensor, meant[embedding.name][key]) for key, tensor in embedding.vectors.items()):
            raise ConvertError(f"{out}: the embedding {embedding.name!r} would not be read as it was written")
