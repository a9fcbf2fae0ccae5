"""The embeddings of a file as users see them: halves with_halves, renamed, and for one family."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from .dialects import DIALECTS
from .embedding import Embedding
from .errors import ConvertError
from .families import Family, all_families
from .lora import lora_families, stated_families
from .read import Identified, families_of, identify, recorded_family


class ConvertOptions(NamedTuple):
    """`family` and `name` decide what a file leaves open; `dialect` is written where no program is named. `subfolder`
    is where files are written below the output folder (and the folder of each program).
    """

    family: str | None = None
    name: str | None = None
    dialect: str | None = None
    replace: bool = False
    drop_outputs: bool = False
    subfolder: str = ""


def with_halves(embeddings: Sequence[Embedding], path: Path, found: Identified) -> Sequence[Embedding]:
    """With the other halves of diffusers' SDXL embeddings, if `<stem>_2` in the same folder has the same embeddings.

    (`<stem>_2-steps-500` for files saved during training.)
    """
    other = other_half(path, found)
    return embeddings if other is None else together([*embeddings, *other.contents.embeddings])


def other_half(path: Path, found: Identified) -> Identified | None:
    """The second of diffusers' two files of SDXL embeddings, if `path` is the first and the second is in its folder."""
    embeddings = found.contents.embeddings
    if found.dialect != "diffusers" or not embeddings:
        return None
    stem, dash, steps = _steps(path)
    second = path.with_name(f"{stem}_2{dash}{steps}{path.suffix}")
    if not second.is_file():
        return None
    other = identify(second)
    halves = other.contents.embeddings
    if other.dialect != "diffusers" or {embedding.name for embedding in halves} != {
        embedding.name for embedding in embeddings
    }:
        return None
    shared = {key for embedding in embeddings for key in embedding.vectors} & {
        key for embedding in halves for key in embedding.vectors
    }
    return None if shared else other


def without_halves(paths: Sequence[Path]) -> list[Path]:
    """The files without those that `with_halves` reads together with another of them."""
    given: set[Path] = set()
    kept = []
    for path in paths:
        stem, dash, steps = _steps(path) if "_2" in path.name else ("", "", "")
        if not stem.endswith("_2"):
            kept.append(path)
            continue
        given = given or set(paths)
        first = path.with_name(f"{stem.removesuffix('_2')}{dash}{steps}{path.suffix}")
        if first in given:
            try:
                found = identify(first)
                if len(with_halves(found.contents.embeddings, first, found)[0].vectors) > 1:
                    continue
            except (ConvertError, IndexError):
                pass  # reported when the file itself is read
        kept.append(path)
    return kept


def _steps(path: Path) -> tuple[str, str, str]:
    """The stem of `learned_embeds-steps-500` before and after the dash that diffusers puts before a save's steps."""
    stem, dash, steps = path.stem.rpartition("-steps-")
    return (stem, dash, steps) if dash and steps.isdecimal() else (path.stem, "", "")


def together(embeddings: Iterable[Embedding]) -> list[Embedding]:
    """Embeddings of one name with vectors for different encoders become one. Raises ConvertError if they overlap."""
    found: dict[str, Embedding] = {}
    for embedding in embeddings:
        known = found.get(embedding.name)
        if known is not None and known.vectors.keys() & embedding.vectors.keys():
            raise ConvertError(f"two embeddings are called {embedding.name!r}; rename one of them first")
        vectors = {**known.vectors, **embedding.vectors} if known else embedding.vectors
        found[embedding.name] = replace(
            embedding, vectors=vectors, metadata={**(known.metadata if known else {}), **embedding.metadata}
        )
    return list(found.values())


def named(embeddings: Iterable[Embedding], name: str | None) -> Iterable[Embedding]:
    """The single embedding under another name; all as they are if no name is given."""
    if name is None:
        return embeddings
    embeddings = list(embeddings)
    if len(embeddings) != 1:
        raise ConvertError(f"--name renames a single embedding; the file has {len(embeddings)}: {names(embeddings)}")
    return [replace(embeddings[0], name=name)]


def family_of_embeddings(
    path: Path, embeddings: Sequence[Embedding], found: Identified, options: ConvertOptions
) -> Family:
    """The only family that fits embeddings and LoRA, or the one that was asked for.

    Raises ConvertError if it stays open.
    """
    if options.family is not None:
        return family_by_name(options.family, embeddings)
    shapes = {
        tuple(sorted((key, tensor.shape[-1]) for key, tensor in embedding.vectors.items())): embedding
        for embedding in embeddings
    }
    each = [families_of(embedding, found.dialect) for embedding in shapes.values()]
    possible = [name for name in all_families() if all(name in names for names in each)]
    if found.contents.rest and len(possible) != 1:
        stated = lora_families(found.contents.rest, found.contents.metadata)
        possible = [name for name in stated if name in possible] or possible
    if len(possible) != 1 and (own := recorded_family(embeddings)) is not None and own.name in (possible or [own.name]):
        return own
    if len(possible) != 1:
        stated = stated_families(found.contents.metadata)
        possible = [name for name in possible if name in stated] or possible
    if len(possible) != 1:
        sizes = ", ".join(
            sorted(
                {f"{key} {tensor.shape[-1]}" for embedding in embeddings for key, tensor in embedding.vectors.items()}
            )
        )
        if not possible:
            raise ConvertError(f"{path}: widths {sizes} fit no known family; --dialect encoders writes it anyway")
        raise ConvertError(f"{path}: widths {sizes} fit {', '.join(possible)}; choose one with --family")
    return all_families()[possible[0]]


def family_by_name(name: str, embeddings: Sequence[Embedding] = ()) -> Family:
    """A family by name, with the widths that embeddings of ours record; ConvertError that lists all for a wrong one."""
    if name not in all_families():
        raise ConvertError(f"{name!r} is not a family; choose from {', '.join(all_families())}")
    stated = recorded_family(embeddings)
    return stated if stated is not None and stated.name == name else all_families()[name]


def what(found: Identified) -> str:
    """`this is a ...`, for an error about a file of the wrong kind."""
    if not found.dialect:
        return "this is not an embedding"
    title = DIALECTS[found.dialect].title
    return f"this is a {title}" if found.contents.rest else f"this is an embedding alone ({title})"


def names(embeddings: Sequence[Embedding]) -> str:
    """The first embeddings, for an error."""
    return ", ".join(repr(embedding.name) for embedding in embeddings[:8])
