"""Putting embeddings into a LoRA file."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from .atomic import Batch
from .bundle import bundle as bundled
from .bundle import tensors_of
from .embedding import Contents, Embedding, unload
from .embeddings import ConvertOptions, family_by_name, family_of_embeddings, named, what, with_halves
from .errors import ConvertError
from .families import Family, all_families
from .lora import has_denoiser, lora_families
from .lora_renaming import renamed_layout
from .programs import programs, reads_lora
from .programs.loras import applied
from .read import Identified, families_of, identify, own_embeddings, recorded_family
from .slots import settle
from .stored import Stored
from .write import Written, write_contents

USERS = ("a1111", "sdnext")  # the programs that use embeddings in a LoRA
MANY = 256  # files; above, no vectors are kept in memory


def bundle(
    files: Batch, lora: Path, embeddings: Sequence[Path], out: Path, targets: Sequence[str], options: ConvertOptions,
    through: Callable[[Sequence[Path]], Iterable[Path]] = iter,
) -> list[Written]:  # fmt: skip
    """The LoRA with the embeddings of the other files, read `through` a progress bar.

    Raises ConvertError if they are for different families, if an embedding would be lost in A1111, or if a program of
    `targets` would refuse the LoRA or apply none of its modules; leaving out embeddings is only a loss.
    """
    found = identify(lora)
    if not found.contents.rest:
        raise ConvertError(f"{lora}: {what(found)}; the first file must be the LoRA")
    family = _family_of_lora(lora, found, embeddings, options)
    widths = family.widths if family else None
    added = (embedding for path in through(embeddings) for embedding in _embeddings_to_add(path))
    embeddings_named = named(added, options.name)
    settled = (
        Embedding(embedding.name, settle(embedding.vectors, widths or {}), embedding.metadata)
        for embedding in embeddings_named
    )
    turns = _in_turn(settled) if len(embeddings) > MANY else settled
    lora_only = replace(found.contents, embeddings=own_embeddings(found.contents))
    contents = bundled(lora_only, turns, widths=widths, replace=options.replace, drop_outputs=options.drop_outputs)
    stored = Stored(out, tensors_of(contents), contents.metadata)
    losses = _bundle_losses(stored, contents, targets, family)
    [written] = write_contents(files, out, contents, "bundle", ",".join(targets), losses)
    return [written._replace(prompts=_prompts(stored, targets or USERS, family) if len(embeddings) <= MANY else {})]


def _prompts(file: Stored, targets: Iterable[str], family: Family | None) -> dict[str, str]:
    """What the user types in each program: the LoRA itself, and the embeddings that it finds in it."""
    found = {}
    for target in targets:
        reading = reads_lora(target, file, family.widths if family else {})
        layers = applied(programs()[target], file, family) if family is not None else None
        if not reading.refusal and not (layers is not None and layers.refusal):
            lora = programs()[target].lora_prompt.format(stem=file.stem, file=file.path.name)
            found[target] = " ".join((lora, *reading.embeddings))
    return found


def _in_turn(embeddings: Iterable[Embedding]) -> Iterator[Embedding]:
    """The embeddings, each of which is unloaded when the next one is read."""
    for embedding in embeddings:
        yield embedding
        unload(embedding)


def _embeddings_to_add(path: Path) -> Sequence[Embedding]:
    found = identify(path)
    if not found.contents.embeddings or found.contents.rest:
        raise ConvertError(f"{path}: {what(found)}; only files of embeddings may follow the LoRA")
    return with_halves(own_embeddings(found.contents), path, found)


def _family_of_lora(
    lora: Path, found: Identified, embeddings: Sequence[Path], options: ConvertOptions
) -> Family | None:
    """The LoRA's family by its shapes, else that of embeddings of ours for a small model, else by its metadata or
    embeddings.

    Raises ConvertError if it stays open, or if the embeddings are for another family.
    """
    first = _embeddings_to_add(embeddings[0])
    if options.family is not None:
        return family_by_name(options.family, first)
    rest, small = found.contents.rest, recorded_family(first)
    stated = lora_families(rest, found.contents.metadata)
    if not stated and small is None and has_denoiser(rest):
        raise ConvertError(f"{lora}: which model this LoRA is for is not known; state it with --family")
    if small is not None and small.name in (stated or [small.name]):
        other = small.widths != all_families()[small.name].widths
        if other and len(lora_families(rest, {})) != 1:
            return small
    if len(stated) == 1:
        _require_family(lora, all_families()[stated[0]], first)
        return all_families()[stated[0]]
    added = [embedding for path in embeddings for embedding in _in_turn(_embeddings_to_add(path))]
    return family_of_embeddings(lora, added, found._replace(dialect=None), options)


def _require_family(lora: Path, family: Family, embeddings: Sequence[Embedding]) -> None:
    """Raises ConvertError for embeddings of another family."""
    for embedding in embeddings:
        known = families_of(embedding)
        if known and family.name not in known:
            titles = ", ".join(all_families()[name].title for name in known)
            raise ConvertError(
                f"{lora}: this LoRA is for {family.title}, and the embedding {embedding.name!r} for {titles}"
            )


def _bundle_losses(file: Stored, contents: Contents, targets: Sequence[str], family: Family | None) -> tuple[str, ...]:
    losses = []
    for target in targets:
        if target not in programs():
            raise ConvertError(f"{target!r} is not a program; choose from {', '.join(programs())}")
        reading = reads_lora(target, file, family.widths if family else {})
        if reading.refusal:
            raise ConvertError(
                f"{programs()[target].title} would not load it: {reading.refusal}; use unbundle --for {target}"
            )
        layers = applied(programs()[target], file, family) if family is not None else None
        if layers is not None and layers.refusal:
            renames = family is not None and renamed_layout(file, family) is not None
            hint = f"; retarget --for {target} renames its modules" if renames else ""
            raise ConvertError(f"{programs()[target].title} would not use this LoRA: {layers.refusal}{hint}")
        losses += [f"{programs()[target].title}: {note}" for note in (layers.notes if layers is not None else ())]
        lost = [embedding.name for embedding in contents.embeddings if embedding.name not in reading.embeddings]
        if lost:
            losses.append(f"{programs()[target].title} does not use {', '.join(lost[:6])}; give it files of their own")
    return (*losses, *_mute(contents, targets or USERS))


def _mute(contents: Contents, targets: Iterable[str]) -> Iterator[str]:
    """Warnings about embeddings that can be stored but not typed, or not be used as they are."""
    mixed = [embedding.name for embedding in contents.embeddings if len(_counts(embedding)) > 1]
    for program in (programs()[name] for name in targets):
        mute = [
            embedding.name for embedding in contents.embeddings if not program.can_hold(embedding.name, in_lora=True)
        ]
        if mute:
            yield f"in a prompt of {program.title} {', '.join(map(repr, mute[:6]))} would mean something else; rename"
        if mixed and program.one_count:
            shown = ", ".join(map(repr, mixed[:6]))
            yield f"{program.title} mixes up {shown}, of which each encoder has another number of vectors"


def _counts(embedding: Embedding) -> set[int]:
    """How many vectors each encoder has of an embedding."""
    return {tensor.shape[0] for tensor in embedding.vectors.values()}
