"""All embeddings of a file written into one file again, in a dialect of their own."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path

from . import safetensors_file
from .atomic import Batch
from .bundle import embeddings_of, split
from .dialects import DIALECTS
from .dialects.keyed import EMBEDDINGS
from .embedding import Contents, Embedding
from .errors import ConvertError
from .slots import slots
from .tensor import RawTensor, same
from .write import Written

Check = Callable[[dict[str, RawTensor], dict[str, str]], None]


def rewritten(
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
    tensors, metadata = laid_out(contents, dialect)
    if dialect == "bundle" and check is None:
        _check_embeddings(out, contents, tensors)
    safetensors_file.add(files, out, tensors, metadata, check=check, copied=contents.rest)
    return [Written(out, program, dialect, " ".join(embedding.name for embedding in contents.embeddings), losses)]


def laid_out(contents: Contents, dialect: str) -> tuple[dict[str, RawTensor], dict[str, str]]:
    """Tensors and metadata of such a file; that of several embeddings keeps each one's own metadata."""
    tensors, metadata = DIALECTS[dialect].write(contents)
    if dialect == "bundle" or len(contents.embeddings) > 1:
        metadata = {**metadata, **each_ones(contents.embeddings)}
    return tensors, metadata


def each_ones(embeddings: Iterable[Embedding]) -> dict[str, str]:
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
