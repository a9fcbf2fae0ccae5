"""Unbundle, retarget, merge and split: a few lines each over reading and writing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import chain, count
from pathlib import Path

from . import safetensors_file
from .atomic import Batch
from .bundle import PREFIX
from .bundle import bundle as bundled
from .dialects.keyed import EMBEDDINGS
from .embedding import Contents, Embedding
from .embeddings import ConvertOptions, family_by_name, family_of_embeddings, named, together, what, with_halves
from .errors import ConvertError, NothingToDo, count_of
from .families import Family
from .lora import lora_families
from .lora_renaming import FACTS, to_kohya
from .names import distinct_stems
from .programs import programs
from .programs.loras import applied
from .read import Identified, identify, only_outputs, own_embeddings
from .slots import settle
from .write import Written, add_embeddings, layout_for, write_contents

DEFAULT_PROGRAMS = ("comfyui", "onetrainer")  # their keys are what most programs read


def unbundle(files: Batch, path: Path, folder: Path, targets: Sequence[str], options: ConvertOptions) -> list[Written]:
    """The LoRA without its embeddings, and a file an embedding for each program (in a folder each, if there are
    several).

    The LoRA keeps its file name, with `_lora` if an embedding needs that name; a bundle without a LoRA gives none.
    Tensors that only look like a part of an embedding are left out. Raises NothingToDo for a file without bundled
    embeddings.
    """
    found = identify(path)
    embeddings = own_embeddings(found.contents)
    if not embeddings or not (found.contents.rest or found.dialect == "bundle"):
        raise NothingToDo(f"{path}: {what(found)}, so there is nothing to unbundle")
    if options.dialect is not None:
        written = _in_dialect(files, embeddings, folder, options.dialect)
    else:
        written = _for_targets(
            files, embeddings, targets, family_of_embeddings(path, embeddings, found, options), folder
        )
    rest = {name: tensor for name, tensor in found.contents.rest.items() if not name.startswith(PREFIX)}
    losses = tuple(
        f"{name} is left out: it is no part of an embedding" for name in found.contents.rest if name not in rest
    )
    if not rest:
        return [*written[:-1], written[-1]._replace(losses=(*written[-1].losses, *losses))]
    used = {str(item.path).casefold() for item in written}
    suffixes = chain(("", "_lora"), (f"_lora_{number}" for number in count(2)))
    names = (f"{path.stem}{suffix}.safetensors" for suffix in suffixes)
    place = next(folder / name for name in names if str(folder / name).casefold() not in used)
    metadata = {key: value for key, value in found.contents.metadata.items() if key != EMBEDDINGS}
    safetensors_file.add(files, place, rest, metadata, copied=rest)
    return [Written(place, "", "lora", "", losses), *written]


def retarget(files: Batch, path: Path, folder: Path, targets: Sequence[str], options: ConvertOptions) -> list[Written]:
    """Every embedding of a file of any dialect, written for each program, without the LoRA it may be in.

    A LoRA without embeddings is written with its modules renamed, if a program applies more of them then.
    """
    found = identify(path)
    embeddings = list(named(with_halves(own_embeddings(found.contents), path, found), options.name))
    if not embeddings and found.contents.rest and targets:
        return [_lora_for(files, path, found, target, folder, targets, options) for target in dict.fromkeys(targets)]
    if not embeddings:
        raise NothingToDo(f"{path}: {what(found)}, so there is no embedding to write")
    if options.dialect is not None:
        return _in_dialect(files, embeddings, folder / options.subfolder, options.dialect)
    family = family_of_embeddings(path, embeddings, found, options)
    return _for_targets(files, embeddings, targets, family, folder, options.subfolder)


def _lora_for(
    files: Batch, path: Path, found: Identified, target: str, folder: Path, targets: Sequence[str],
    options: ConvertOptions,
) -> Written:  # fmt: skip
    """The LoRA with its modules renamed to kohya's layout, if the program applies more of them then.

    Raises NothingToDo if the program applies the file as it is, ConvertError if renaming does not help.
    """
    program, rest, metadata = programs()[target], found.contents.rest, dict(found.contents.metadata)
    named = [options.family] if options.family else lora_families(rest, metadata)
    if len(named) != 1:
        raise ConvertError(f"{path}: may be for {', '.join(named) or 'any model'}; choose one with --family")
    family = family_by_name(named[0])
    before = applied(program, found.stored, family)
    if before is None:
        raise ConvertError(f"{path}: how {program.title} reads LoRAs for {family.title} is not known")
    if before.applied == before.modules:
        raise NothingToDo(f"{path}: {program.title} applies this LoRA as it is ({count_of(before.modules, 'module')})")
    try:
        renamed = to_kohya(rest, metadata, family)
    except ConvertError as error:
        raise ConvertError(f"{path}: {before.refusal or before.notes[0]}; cannot be renamed: {error}") from error
    after = applied(program, replace(found.stored, tensors=renamed), family)
    if after is None or after.applied <= before.applied:
        raise ConvertError(f"{path}: {before.refusal or before.notes[0]}; renaming its modules does not change that")
    place = (folder / target if len(targets) > 1 else folder) / options.subfolder / f"{path.stem}.safetensors"
    metadata = {key: value for key, value in metadata.items() if key != FACTS}
    safetensors_file.add(files, place, renamed, metadata, copied=renamed)
    prompt = program.lora_prompt.format(stem=place.stem, file=place.name)
    return Written(place, target, "lora", prompt, after.notes)


def merge(
    files: Batch, paths: Sequence[Path], out: Path, options: ConvertOptions,
    through: Callable[[Sequence[Path]], Iterable[Path]] = iter,
) -> list[Written]:  # fmt: skip
    """All embeddings of the files in one: halves of one embedding (diffusers' two SDXL files) together, several as a
    bundle.

    At most one file may be a LoRA, and then the result is that LoRA with all embeddings. The files are read `through`
    a progress bar.
    """
    found = [(path, identify(path)) for path in through(paths)]
    loras = [(path, item) for path, item in found if item.contents.rest]
    if len(loras) > 1:
        raise ConvertError(f"{loras[1][0]}: is a second LoRA; LoRAs cannot be merged")
    embeddings = together(embedding for _, item in found for embedding in own_embeddings(item.contents))
    base = loras[0][1].contents if loras else Contents()
    if not embeddings:
        raise ConvertError("no file holds an embedding")
    if len(embeddings) == 1 and not loras:
        return write_contents(files, out, Contents(tuple(named(embeddings, options.name))), "encoders")
    contents = bundled(replace(base, embeddings=()), embeddings, drop_outputs=options.drop_outputs)
    return write_contents(files, out, contents, "bundle")


def split(
    files: Batch, paths: Sequence[Path], folder: Path, targets: Sequence[str], options: ConvertOptions
) -> list[Written]:
    """A file for each embedding of files that hold several (packs, or what `merge` made); all of them or none.

    Raises ConvertError for a LoRA, which `unbundle` takes apart, and for a name that two files give to an embedding.
    """
    embeddings: dict[str, Path] = {}
    families: dict[str, tuple[Family, list[Embedding]]] = {}
    for path in paths:
        found = identify(path)
        if found.contents.rest:
            raise ConvertError(f"{path}: {what(found)}; use unbundle, which keeps the LoRA")
        own = with_halves(own_embeddings(found.contents), path, found)
        if not own:
            raise ConvertError(f"{path}: {what(found)}, so there is no embedding to write")
        for embedding in own:
            if embeddings.setdefault(embedding.name, path) != path:
                raise ConvertError(
                    f"{path}: has an embedding {embedding.name!r}, and so has {embeddings[embedding.name]}; rename one"
                )
        family = family_of_embeddings(path, own, found, options)
        families.setdefault(f"{family.name} {family.widths}", (family, []))[1].extend(own)
    return [item for family, own in families.values() for item in _for_targets(files, own, targets, family, folder)]


def _in_dialect(files: Batch, embeddings: Sequence[Embedding], folder: Path, dialect: str) -> list[Written]:
    """In a dialect by name, whatever reads it. Only AUTOMATIC1111's is not a safetensors file."""
    written = []
    for embedding, stem in zip(
        embeddings, distinct_stems(embedding.name for embedding in embeddings).values(), strict=True
    ):
        if dialect == "a1111":
            from .torch_writer import add_pt

            add_pt(files, folder / f"{stem}.pt", embedding)
            written.append(Written(folder / f"{stem}.pt", "", dialect, stem))
            continue
        written += write_contents(files, folder / f"{stem}.safetensors", Contents((embedding,)), dialect)
    return written


def _for_targets(
    files: Batch, embeddings: Sequence[Embedding], targets: Sequence[str], family: Family, folder: Path,
    subfolder: str = "",
) -> list[Written]:  # fmt: skip
    if not targets:
        able = [name for name in DEFAULT_PROGRAMS if family.name in programs()[name].layouts]
        if not able:
            return _in_dialect(files, embeddings, folder / subfolder, "encoders")
        outputs_only = any(only_outputs(embedding) for embedding in embeddings)
        targets = [name for name in able if programs()[name].outputs or not outputs_only][:1] or able[:1]
    targets = list(dict.fromkeys(targets))  # a program given twice is written once
    for target in targets:
        layout_for(target, family)  # fail before anything is written
    settled = [
        Embedding(embedding.name, settle(embedding.vectors, family.widths), embedding.metadata)
        for embedding in embeddings
    ]
    written = []
    for target in targets:
        place = (folder / target if len(targets) > 1 else folder) / subfolder
        written += add_embeddings(files, settled, target, family, place)
    return written
