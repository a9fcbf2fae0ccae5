"""Writing embeddings for a program, verified as the program reads them before the file gets its name; and writing all
embeddings of a file into one file, in one dialect.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
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
from .programs import Layout, Program, mixed_counts, programs, reads
from .programs.verdict import UNTYPED
from .slots import settle, slots, split_out
from .stored import Stored
from .tensor import RawTensor, is_zero, same, value_problem

FORMAT = {"format": "pt"}  # without it some loaders built on transformers refuse a file


class Written(NamedTuple):
    """One file that was written: for which program, what the user types there, and what could not go in.

    `prompts` is what the user types in each program, for a file that is not for one program. `encoder`: the text
    encoder of the diffusers pipeline that a file of several is for.
    """

    path: Path
    program: str
    dialect: str
    trigger: str
    losses: tuple[str, ...] = ()
    prompts: Mapping[str, str] = MappingProxyType({})
    encoder: str = ""


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
        untrained = () if target.outputs else _untrained(embedding)
        _check_values(embedding, target, untrained)
        signs = tuple([(key, tensor.shape[0]) for key, tensor in embedding.vectors.items() if key not in untrained])
        losses = known.get((signs, untrained))
        if losses is None:
            losses = known[signs, untrained] = (
                *(f"{key} is left out: only its output vectors were trained" for key in untrained),
                *_losses(dict(signs), target, layout, family, untrained),
            )
        token = _token(embedding, target)
        for suffix, keys in zip(suffixes, layout.files, strict=True):
            stem = stems[embedding.name] + suffix
            path = place / f"{stem}.safetensors"
            model = sizes if len(layout.files) == 1 else {key: size for key, size in sizes.items() if key in keys}
            _add_file(files, path, embedding, target, keys, model, layout.token_ids, token=token, skipped=untrained)
            trigger = target.prompted(stem, token)
            encoder = (
                ", ".join(spec.module for spec in family.encoders if spec.key in keys) if len(suffixes) > 1 else ""
            )
            named = losses if "{stem}" not in target.prompt or target.can_hold(stem) else (*losses, UNTYPED)
            written.append(Written(path, program, layout.dialect, trigger, named, encoder=encoder))
    return written


def can_write(embedding: Embedding, program: str, family: Family) -> bool:
    """Whether `add_embeddings` would write this embedding, as far as its vectors decide."""
    target = programs()[program]
    layout = target.layouts.get(family.name)
    if layout is None:
        return False
    untrained = () if target.outputs else _untrained(embedding)
    try:
        _check_values(embedding, target, untrained)
    except ConvertError:
        return False
    keys = {split_out(key)[0] if target.outputs else key for key in settle(embedding.vectors, family.widths)}
    return all(not keys.isdisjoint(file.keys() - set(untrained)) for file in layout.files)


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
        why = target.no_embeddings(family) or f"{target.title}: how it reads embeddings for {family.title} is not known"
        able = [name for name, other in programs().items() if family.name in other.layouts]
        raise ConvertError(f"{why}; programs that do: {', '.join(able) or 'none'}")
    return target, target.layouts[family.name]


def _untrained(embedding: Embedding) -> tuple[str, ...]:
    """Input vectors of zeros beside output vectors, if another encoder has real input vectors; else none."""
    vectors = embedding.vectors
    zeros = tuple(key for key in vectors if f"{key}_out" in vectors and is_zero(vectors[key]))
    return zeros if any(not _output(key) and key not in zeros for key in vectors) else ()


def _token(embedding: Embedding, target: Program) -> str:
    """The name as the program's tokenizer must have it.

    transformers 5 compares added tokens with a prompt that CLIP's tokenizer has already put in lower case, so
    diffusers expands a token of several vectors only if it has no upper-case letter.
    """
    lower = unicodedata.normalize("NFC", embedding.name).lower()
    several = any(len(tensor.shape) > 1 and tensor.shape[0] > 1 for tensor in embedding.vectors.values())
    return lower if target.lower_case and several else embedding.name


def _check_values(embedding: Embedding, target: Program, skipped: Container[str]) -> None:
    """Raises ConvertError for vectors that no program can use."""
    name, vectors = embedding.name, embedding.vectors
    for key, tensor in vectors.items():
        problem = value_problem(tensor)
        if not problem or key in skipped:
            continue
        if not problem.endswith("zero"):
            raise ConvertError(f"{name}: {key} {problem}")
        if not _output(key) and not (target.outputs and f"{key}_out" in vectors):
            hint = " (only its output vectors were trained, which OneTrainer alone can use: --for onetrainer)"
            raise ConvertError(f"{name}: {key} {problem}{hint if any(map(_output, vectors)) else ''}")


def _losses(
    counts: dict[str, int], target: Program, layout: Layout, family: Family, skipped: Container[str] = ()
) -> tuple[str, ...]:
    """What the program cannot use or will misuse of an embedding with so many vectors a key."""
    inputs = {key: count for key, count in counts.items() if not _output(key)}
    outputs = counts.keys() - inputs.keys()
    used = {key for keys in layout.files for key in keys}
    losses = [f"{key} is left out: {target.title} does not use it" for key in inputs if key not in used]
    if not target.outputs:
        losses += [f"{key} is left out: only OneTrainer uses output vectors" for key in sorted(outputs)]
    missing = [key for key in used if key in family.widths and key not in counts and key not in skipped]
    losses += [f"no {key} vectors: the embedding has no effect on that text encoder" for key in sorted(missing)]
    different = sorted({count for key, count in inputs.items() if key in used})
    if target.one_count and len(different) > 1:
        losses.append(mixed_counts(target, different))
    return tuple(losses)


def _add_file(
    files: Batch, path: Path, embedding: Embedding, target: Program, keys: dict[str, str], widths: dict[str, int],
    token_ids: Mapping[str, int], *, token: str, skipped: Container[str],
) -> None:  # fmt: skip
    tensors, meant = {}, {}
    for key, tensor in embedding.vectors.items():
        output = _output(key) and target.outputs
        base = key.removesuffix("_out") if output else key
        if base in keys and key not in skipped:
            tensors[keys[base].replace("{embedding}", token) + ("_out" if output else "")] = tensor
            meant[key] = tensor
    meant = {key: tensor for key, tensor in meant.items() if f"{key}_out" not in meant}
    if not tensors:
        raise ConvertError(f"{embedding.name}: has no vectors that {target.title} could use")
    count = next(iter(meant.values())).shape[0]
    for name, number in token_ids.items():
        tensors[name] = RawTensor("I64", (count, 1), number.to_bytes(8, "little") * count)
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
    if reading.notes:
        raise ConvertError(f"{path}: {'; '.join(reading.notes)}")
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
