"""What the commands do, as plain functions: `from pivotune.converters.library import read, retarget, unbundle, bundle`.

All of them raise ConvertError, whose text says what is wrong and the way out, and then leave nothing behind. Files that
a call writes appear together. torch is never needed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from os import PathLike
from pathlib import Path

from . import adding, operations, renaming
from .atomic import Batch, batch
from .embedding import Embedding
from .embeddings import ConvertOptions, family_by_name
from .errors import ConvertError
from .inspection import inspect
from .read import read
from .write import Written, add_embeddings, strictly

__all__ = ["ConvertError", "Written", "bundle", "inspect", "merge", "read", "rename", "retarget", "unbundle", "write"]

AnyPath = str | PathLike[str]


def write(
    embeddings: Iterable[Embedding],
    program: str,
    folder: AnyPath,
    *,
    family: str,
    overwrite: bool = False,
    strict: bool = False,
) -> list[Written]:
    """Write embeddings (of `read`, or made by hand) as files that `program` loads for models of `family`.

    Each file is read back as the program reads it. What it cannot hold is in `losses`; `strict` makes that an error.
    """
    given = list(embeddings)
    kind = family_by_name(family, given)
    return _done(lambda files: add_embeddings(files, given, program, kind, Path(folder)), overwrite, strict)


def retarget(
    path: AnyPath, folder: AnyPath, programs: Sequence[str] = (), *, family: str | None = None, name: str | None = None,
    dialect: str | None = None, overwrite: bool = False, strict: bool = False,
) -> list[Written]:  # fmt: skip
    """Every embedding of a file of any dialect, written for each of `programs` (or once in `dialect`).

    Several programs get a folder each. `family` is needed where the file leaves it open, `name` renames the one
    embedding.
    """
    options = ConvertOptions(family=family, name=name, dialect=dialect)
    return _done(
        lambda files: operations.retarget(files, Path(path), Path(folder), programs, options), overwrite, strict
    )


def unbundle(
    path: AnyPath, folder: AnyPath, programs: Sequence[str] = (), *, family: str | None = None,
    dialect: str | None = None, overwrite: bool = False, strict: bool = False,
) -> list[Written]:  # fmt: skip
    """The LoRA without its embeddings (first of what comes back), and a file an embedding for each program."""
    options = ConvertOptions(family=family, dialect=dialect)
    return _done(
        lambda files: operations.unbundle(files, Path(path), Path(folder), programs, options), overwrite, strict
    )


def bundle(
    lora: AnyPath, embeddings: Iterable[AnyPath], out: AnyPath, programs: Sequence[str] = (), *,
    family: str | None = None, name: str | None = None, replace: bool = False, drop_outputs: bool = False,
    overwrite: bool = False, strict: bool = False,
) -> list[Written]:  # fmt: skip
    """The LoRA with the embeddings of other files in it; an error if one of `programs` would refuse the whole LoRA."""
    options = ConvertOptions(family=family, name=name, replace=replace, drop_outputs=drop_outputs)
    paths = [Path(embedding) for embedding in embeddings]
    return _done(lambda files: adding.bundle(files, Path(lora), paths, Path(out), programs, options), overwrite, strict)


def rename(path: AnyPath, new: str, out: AnyPath | None = None, *, overwrite: bool = False) -> list[Written]:
    """The same file with an embedding called `new`; `old=new` says which, where there are several.

    `out` is a file, or a folder (the file's own, if it is not given), where the file of a single embedding is called
    like the embedding, for most programs go by that; `prompts` of what comes back says what is typed in each.
    """
    place = None if out is None else Path(out)
    return _done(lambda files: renaming.rename(files, Path(path), new, place), overwrite, False)


def merge(
    paths: Iterable[AnyPath],
    out: AnyPath,
    *,
    name: str | None = None,
    drop_outputs: bool = False,
    overwrite: bool = False,
) -> list[Written]:
    """All embeddings of the files in one: halves of an embedding together, several embeddings as a bundle, at most one
    LoRA with it.
    """
    found, options = [Path(path) for path in paths], ConvertOptions(name=name, drop_outputs=drop_outputs)
    return _done(lambda files: operations.merge(files, found, Path(out), options), overwrite, False)


def _done(work: Callable[[Batch], list[Written]], overwrite: bool, strict: bool) -> list[Written]:
    with batch(overwrite=overwrite) as files:
        written = work(files)
        if strict:
            strictly(written)
    return written
