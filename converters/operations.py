"""Unbundle, bundle, retarget, rename and merge: a few lines each over reading and writing."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import chain, count
from pathlib import Path

from . import safetensors_file
from .atomic import Batch
from .bundle import bundle as bundled
from .bundle import check_name, words_of
from .dialects import DIALECTS
from .embedding import Contents, Embedding
from .errors import ConvertError
from .families import Family, all_families
from .lora_layout import lora_families
from .names import distinct_stems
from .programs import programs, reads_lora
from .read import Recognised, recognised
from .slots import settle
from .stored import Stored
from .tensor import RawTensor, same
from .words import WORDS, Options, asked_family, family_of_words, joined, named, names, own_words, together, what
from .write import Written, add_words, layout_for

MANY = 256  # files, of which no vectors are kept in memory
DEFAULT_PROGRAMS = ("comfyui", "onetrainer")  # spelled as most programs read it


def unbundle(files: Batch, path: Path, folder: Path, targets: Sequence[str], options: Options) -> list[Written]:
    """The LoRA without its words, and a file a word for each program (in a folder each, if there are several).

    The LoRA keeps its file name, with `_lora` if a word needs that name. Raises ConvertError if the file is no LoRA
    with words in it.
    """
    found = recognised(path)
    words = own_words(found.contents)
    if not words or not found.stored.is_lora:
        raise ConvertError(f"{path}: {what(found)}, so there is nothing to take out")
    family = family_of_words(path, words, found, options)
    written = _for_targets(files, words, targets, family, folder)
    taken = {str(item.path).casefold() for item in written}
    suffixes = chain(("", "_lora"), (f"_lora_{number}" for number in count(2)))
    names = (f"{path.stem}{suffix}.safetensors" for suffix in suffixes)
    place = next(folder / name for name in names if str(folder / name).casefold() not in taken)
    metadata = {key: value for key, value in found.contents.metadata.items() if key != WORDS}
    safetensors_file.add(files, place, found.contents.rest, metadata)
    return [Written(place, "", "lora", ""), *written]


def retarget(files: Batch, path: Path, folder: Path, targets: Sequence[str], options: Options) -> list[Written]:
    """Every word of a file of any dialect, written for each program; a LoRA's own tensors are left where they are."""
    found = recognised(path)
    words = named(joined(own_words(found.contents), path, found), options.name)
    if not words:
        raise ConvertError(f"{path}: {what(found)}, so there is no word to write")
    if options.dialect is not None:
        return _in_dialect(files, words, folder, options.dialect)
    return _for_targets(files, words, targets, family_of_words(path, words, found, options), folder)


def bundle(
    files: Batch, lora: Path, words: Sequence[Path], out: Path, targets: Sequence[str], options: Options
) -> list[Written]:
    """The LoRA with the words of the other files in it.

    Raises ConvertError if they are for different families, if a word would be lost in A1111, or if a program of
    `targets` would refuse the LoRA; that it leaves the words out is a loss.
    """
    found = recognised(lora)
    if not found.contents.rest:
        raise ConvertError(f"{lora}: {what(found)}; the first file must be the LoRA")
    held = safetensors_file.SMALL if len(words) <= MANY else 0
    added = [word for path in words for word in _words_to_add(path, held)]
    family = _family_of_lora(lora, found, added, options)
    widths = family.widths if family else None
    settled = [replace(word, vectors=settle(word.vectors, widths or {})) for word in named(added, options.name)]
    lora_only = replace(found.contents, embeddings=own_words(found.contents))
    contents = bundled(lora_only, settled, widths=widths, replace=options.replace, drop_outputs=options.drop_outputs)
    tensors, _ = DIALECTS["bundle"].write(contents)
    metadata = {**contents.metadata, WORDS: json.dumps({word.name: word.metadata for word in contents.embeddings})}
    losses = _bundle_losses(Stored(out, tensors, metadata), contents, targets, family)
    safetensors_file.add(files, out, tensors, metadata, partial(_check_words, out, contents))
    return [Written(out, ",".join(targets), "bundle", " ".join(word.name for word in contents.embeddings), losses)]


def rename(files: Batch, path: Path, new: str, out: Path) -> list[Written]:
    """The same file with its word called otherwise; `old=new` says which, where there are several."""
    found = recognised(path)
    words = own_words(found.contents)
    old, _, name = new.rpartition("=") if len(words) > 1 else ("", "", new)
    if len(words) > 1 and old not in [word.name for word in words]:
        raise ConvertError(f"{path}: holds {len(words)} words; say which, as OLD=NEW: {names(words)}")
    if not words:
        raise ConvertError(f"{path}: {what(found)}, so there is no word to rename")
    if not name.strip():
        raise ConvertError(f"{path}: a word must have a name; the new one is blank")
    if len(words) > 1 and any(word.name.casefold() == name.casefold() for word in words if word.name != old):
        raise ConvertError(f"{path}: has a word {name!r} already")
    if found.dialect == "bundle":
        check_name(name)
    renamed = tuple(replace(word, name=name) if word.name == old or len(words) == 1 else word for word in words)
    return _rewrite(files, out, replace(found.contents, embeddings=renamed), found.dialect or "")


def merge(files: Batch, paths: Sequence[Path], out: Path, options: Options) -> list[Written]:
    """All words of the files in one: halves of one word (diffusers' two SDXL files) together, several as a bundle.

    At most one file may be a LoRA, and then the result is that LoRA with all words.
    """
    found = [(path, recognised(path)) for path in paths]
    loras = [(path, item) for path, item in found if item.contents.rest]
    if len(loras) > 1:
        raise ConvertError(f"{loras[1][0]}: is a second LoRA; merging the weights of LoRAs is another task")
    words = together(word for _, item in found for word in own_words(item.contents))
    base = loras[0][1].contents if loras else Contents()
    if not words:
        raise ConvertError("no file holds a word")
    if len(words) == 1 and not loras:
        return _rewrite(files, out, Contents(tuple(named(words, options.name))), "encoders")
    contents = bundled(replace(base, embeddings=()), words, drop_outputs=options.drop_outputs)
    return _rewrite(files, out, contents, "bundle")


def _rewrite(files: Batch, out: Path, contents: Contents, dialect: str) -> list[Written]:
    (tensors, metadata), check = DIALECTS[dialect].write(contents), None
    if dialect == "bundle":
        metadata = {**metadata, WORDS: json.dumps({word.name: word.metadata for word in contents.embeddings})}
        check = partial(_check_words, out, contents)
    safetensors_file.add(files, out, tensors, metadata, check)
    return [Written(out, "", dialect, " ".join(word.name for word in contents.embeddings))]


def _in_dialect(files: Batch, words: Sequence[Embedding], folder: Path, dialect: str) -> list[Written]:
    written = []
    for word, stem in zip(words, distinct_stems(word.name for word in words).values(), strict=True):
        written += _rewrite(files, folder / f"{stem}.safetensors", Contents((word,)), dialect)
    return written


def _check_words(out: Path, contents: Contents, tensors: dict[str, RawTensor], _: dict[str, str]) -> None:
    """Raises ConvertError unless the written tensors give back every word bit for bit."""
    found, rest = words_of(tensors)
    meant = {word.name: word.vectors for word in contents.embeddings}
    if {word.name for word in found} != meant.keys() or rest.keys() != contents.rest.keys():
        raise ConvertError(f"{out}: its words would not be found again under their names")
    for word in found:
        kept = word.vectors.keys() == meant[word.name].keys()
        if not kept or not all(same(tensor, meant[word.name][key]) for key, tensor in word.vectors.items()):
            raise ConvertError(f"{out}: the word {word.name!r} would not be read as it was written")


def _for_targets(
    files: Batch, words: Sequence[Embedding], targets: Sequence[str], family: Family, folder: Path
) -> list[Written]:
    if not targets:
        able = [name for name in DEFAULT_PROGRAMS if family.name in programs()[name].layouts]
        targets = able[:1]
    for target in targets:
        layout_for(target, family)  # what cannot be done is said before anything is written
    settled = [replace(word, vectors=settle(word.vectors, family.widths)) for word in words]
    written = []
    for target in targets:
        place = folder / target if len(targets) > 1 else folder
        written += add_words(files, settled, target, family, place)
    return written


def _words_to_add(path: Path, held: int) -> Sequence[Embedding]:
    found = recognised(path, held=held)
    if not found.contents.embeddings or found.contents.rest:
        raise ConvertError(f"{path}: {what(found)}; after the LoRA come files with words alone")
    return joined(own_words(found.contents), path, found)


def _family_of_lora(path: Path, found: Recognised, words: Sequence[Embedding], options: Options) -> Family | None:
    """The LoRA's family; None only if neither it nor the words tell, so that no width can be checked."""
    if options.family is not None:
        return asked_family(options.family)
    stated = lora_families(found.contents.rest, found.contents.metadata)
    if len(stated) == 1:
        return all_families()[stated[0]]
    return family_of_words(path, words, replace(found, dialect=None), options)


def _bundle_losses(file: Stored, contents: Contents, targets: Sequence[str], family: Family | None) -> tuple[str, ...]:
    losses = []
    for target in targets:
        if target not in programs():
            raise ConvertError(f"{target!r} is no program; choose from {', '.join(programs())}")
        reading = reads_lora(target, file, family.widths if family else {})
        if reading.breaks:
            raise ConvertError(
                f"{programs()[target].title} would not load it: {reading.breaks}; use unbundle --for {target}"
            )
        lost = [word.name for word in contents.embeddings if word.name not in reading.words]
        if lost:
            losses.append(f"{programs()[target].title} does not use {', '.join(lost[:6])}; give it files of their own")
    return tuple(losses)
