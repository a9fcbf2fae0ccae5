"""Reading any file that holds embeddings: opened by content, recognised by exactly one dialect."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from .dialects import DIALECTS
from .dialects.cloneofsimo import FLAG
from .dialects.keyed import EMBEDDINGS
from .embedding import Contents, Embedding
from .errors import ConvertError, count_of
from .families import Family, all_families, possible_families
from .lora import LoraInfo, stated_families
from .opening import open_file
from .safetensors_file import SMALL
from .slots import LONG, UNNAMED, outputs, settle, split_out
from .stored import Stored
from .tensor import is_zero

FEW, MANY = 8, 256  # tensors of a file whose signs are kept, and files of which they are
_CLAIMS: dict[tuple, list[str]] = {}  # signs of files to the dialects that claim them

FAMILY = "pivotune.family"  # metadata of an embedding that was trained here


class Identified(NamedTuple):
    """An opened file, its dialect (None: no embedding and no LoRA), and what it holds."""

    stored: Stored
    dialect: str | None
    contents: Contents


def read(path: Path | str) -> Contents:
    """Embeddings, other tensors and metadata of a file of any dialect.

    Raises ConvertError that says what the file is.
    """
    return identify(path).contents


def identify(path: Path | str, *, cached: int = SMALL) -> Identified:
    """As `read`, with the dialect and the opened file."""
    stored = open_file(path, cached=cached)
    dialect = dialect_of(stored)
    if dialect is None:
        raise ConvertError(f"{stored.path}: {unknown(stored)}")
    return Identified(stored, dialect, DIALECTS[dialect].read(stored))


def dialect_of(stored: Stored) -> str | None:
    """The one dialect that claims the file, None if none does. Raises ConvertError if several do."""
    signs = _signs(stored)
    claims = _CLAIMS.get(signs) if signs else None
    if claims is None:
        claims = [name for name, dialect in DIALECTS.items() if dialect.detect(stored)]
        if signs:
            if len(_CLAIMS) >= MANY:
                _CLAIMS.clear()
            _CLAIMS[signs] = claims
    if len(claims) > 1:
        raise ConvertError(f"{stored.path}: could be any of {', '.join(claims)}; please report this file")
    return claims[0] if claims else None


def _signs(stored: Stored) -> tuple | None:
    """All that dialects look at in a small safetensors file, so that of ten thousand embeddings they are asked for one.

    None for other files, and where a text of the metadata counts (cloneofsimo's flag).
    """
    names = (*stored.tensors, *stored.metadata) if len(stored.tensors) <= FEW else None
    if names is None or sum(map(len, names)) > LONG or FLAG in stored.metadata.values():
        return None
    if stored.container != "safetensors":
        return None
    shapes = [(name, tensor.dtype, tensor.shape) for name, tensor in stored.tensors.items()]
    return stored.root, tuple(shapes), tuple(stored.metadata)


def families_of(embedding: Embedding, dialect: str | None = None) -> list[str]:
    """Families that an embedding may be for, the likeliest first: all whose encoders have the widths of its vectors.

    A file that fills every encoder of a family is for none that has more, unless it holds one tensor alone: a lone
    768-wide one fits SD 1, half of SDXL, or FLUX, unless the writers of its dialect always give all encoders.
    """
    widths = {key.removesuffix("_out"): tensor.shape[-1] for key, tensor in embedding.vectors.items()}
    if UNNAMED in widths:
        size = widths.pop(UNNAMED)
        found = [name for name, family in all_families().items() if size in family.widths.values() and not widths]
    else:
        found = possible_families(widths)
    whole = [name for name in found if len(all_families()[name].widths) == max(len(widths), 1)]
    if dialect and DIALECTS[dialect].whole:
        return whole
    return whole if whole and len(widths) > 1 else found


def family_of(embedding: Embedding, dialect: str | None = None) -> str | None:
    """The family of an embedding if its vectors leave no other."""
    found = families_of(embedding, dialect)
    return found[0] if len(found) == 1 else None


def recorded_family(embeddings: Sequence[Embedding]) -> Family | None:
    """The family that embeddings written here say they are for, with the widths that they have.

    A small model has the encoders of its family in other sizes. None if the embeddings do not say, or not the same.
    """
    names = {embedding.metadata.get(FAMILY) for embedding in embeddings}
    family = all_families().get(names.pop() or "") if len(names) == 1 else None
    if family is None:
        return None
    found: dict[str, set[int]] = {}
    for embedding in embeddings:
        for key, tensor in embedding.vectors.items():
            size = tensor.shape[-1]
            [settled] = settle({key: tensor}, {next(iter(family.widths)): size} if len(family.widths) == 1 else {})
            found.setdefault(split_out(settled)[0], set()).add(size)
    if not found.keys() <= family.widths.keys() or any(len(sizes) != 1 for sizes in found.values()):
        return None
    sized = (spec._replace(width=min(found.get(spec.key, {spec.width}))) for spec in family.encoders)
    return replace(family, encoders=tuple(sized))


def unknown(stored: Stored) -> str:
    """What to say of a file that no dialect claims."""
    names = list(stored.tensors)
    if not names:
        return "no tensor in it, so it is no embedding"
    if any(name.startswith(("model.diffusion_model.", "cond_stage_model.", "conditioner.")) for name in names):
        return "this is a whole model (a checkpoint), not an embedding"
    if any(name.startswith(("text_model.", "transformer.resblocks")) for name in names):
        return "this is a text encoder, not an embedding"
    shown = ", ".join(f"{name[:50]} {list(stored.tensors[name].shape)}" for name in names[:4])
    return f"not an embedding and not a LoRA; it holds {count_of(len(names), 'tensor')}: {shown}"


def only_outputs(embedding: Embedding) -> bool:
    """Whether only output vectors were trained: there are no input vectors, or only zeros."""
    inputs = [tensor for key, tensor in embedding.vectors.items() if not key.endswith("_out")]
    return bool(outputs(embedding.vectors)) and all(map(is_zero, inputs))


def candidate_families(contents: Contents, dialect: str | None, lora: LoraInfo | None) -> list[Family]:
    """Families that fit all embeddings and the LoRA, the likeliest first; the one that embeddings of ours record,
    where it is possible, with the widths of the embeddings, which may be those of a small model.

    If the embeddings fit none of the LoRA's families, those of the LoRA.
    """
    names = _of_embeddings(contents, dialect)
    if lora is not None and lora.families:
        names = [name for name in lora.families if name in names] or list(lora.families)
    own = recorded_family(own_embeddings(contents))
    if own is not None and own.name in (names or [own.name]):
        return [own]
    stated = stated_families(contents.metadata)
    return [all_families()[name] for name in [name for name in names if name in stated] or names]


def _of_embeddings(contents: Contents, dialect: str | None) -> list[str]:
    found: list[str] | None = None
    for embedding in contents.embeddings:
        own = families_of(embedding, dialect)
        found = own if found is None else [name for name in found if name in own]
    return found or []


def own_embeddings(contents: Contents) -> tuple[Embedding, ...]:
    """Embeddings with the metadata that a file of ours keeps for each of several."""
    if EMBEDDINGS not in contents.metadata:
        return contents.embeddings
    try:
        kept = json.loads(contents.metadata[EMBEDDINGS])
    except (ValueError, RecursionError):
        return contents.embeddings
    if not isinstance(kept, dict):
        return contents.embeddings
    return tuple(
        Embedding(
            embedding.name, embedding.vectors, {str(key): value for key, value in own.items() if isinstance(value, str)}
        )
        if isinstance(own := kept.get(embedding.name), dict)
        else embedding
        for embedding in contents.embeddings
    )
