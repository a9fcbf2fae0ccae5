"""What a file holds, as plain values for people and for JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from hashlib import sha256
from math import fsum, isfinite, sqrt
from pathlib import Path
from typing import Any

from .dialects import DIALECTS
from .dtypes import values
from .embedding import Contents, Embedding
from .errors import ConvertError
from .families import Family
from .lora import describe
from .opening import open_file
from .programs.verdict import Verdict
from .read import candidate_families, dialect_of, unknown
from .slots import UNNAMED, outputs, settle
from .stored import Stored
from .tensor import READABLE, RawTensor
from .verdicts import verdicts
from .write import can_write


def inspect(path: Path | str) -> dict[str, Any]:
    """Everything about one file, in values that JSON has.

    `kind` is embedding, lora, bundle or other; `family` is None if several `families` are possible; `programs` says
    for each program whether it `loads` the file (yes, partly, no, not known), what to type (`prompt`) and why
    (`notes`); `retarget` are programs that load it once `retarget` has written it for them. Raises ConvertError only
    for a file that cannot be opened or is corrupt.
    """
    stored = open_file(path)
    dialect = dialect_of(stored)
    try:
        contents = DIALECTS[dialect].read(stored) if dialect else Contents()
        notes = [] if dialect else [unknown(stored)]
    except ConvertError as error:
        contents, notes = Contents(), [str(error).removeprefix(f"{stored.path}: ")]
    kind = _kind(stored, contents)
    lora = describe(contents.rest, contents.metadata) if kind in ("lora", "bundle") else None
    kinds = candidate_families(contents, dialect, lora)
    families = [family.name for family in kinds]
    if len(kinds) == 1:
        contents = replace(
            contents, embeddings=tuple(_settled(embedding, kinds[0]) for embedding in contents.embeddings)
        )
    embeddings = [_embedding(item) for item in contents.embeddings]
    found = verdicts(stored, contents, kinds, kind != "embedding") if kind != "other" else {}
    if dialect is not None and (special := DIALECTS[dialect].verdicts) is not None:
        found = special(stored)
    return {
        "path": str(path),
        "kind": kind,
        "dialect": dialect,
        "title": DIALECTS[dialect].title if dialect else None,
        "family": families[0] if len(families) == 1 else None,
        "families": families,
        "embeddings": embeddings,
        "lora": None if lora is None else {**lora._asdict(), "tensors": len(contents.rest)},
        "metadata": dict(stored.metadata),
        "notes": [*notes, *_notes(stored, contents, kinds), *_vector_notes(embeddings)],
        "programs": {name: {**verdict._asdict(), "notes": list(verdict.notes)} for name, verdict in found.items()},
        "retarget": _after_retarget(contents, kinds, found) if kind == "embedding" else [],
    }


def _after_retarget(contents: Contents, kinds: Sequence[Family], found: dict[str, Verdict]) -> list[str]:
    """Programs that do not load the file, and would load its embeddings if they were written for them."""
    refusing = [name for name, verdict in found.items() if verdict.loads == "no"]
    return [
        name
        for name in refusing
        if any(all(can_write(embedding, name, kind) for embedding in contents.embeddings) for kind in kinds)
    ]


def unread(path: Path | str, error: ConvertError) -> dict[str, Any]:
    """The result of `inspect` for a file that cannot be read: its `error`."""
    facts: dict[str, Any] = {"path": str(path), "kind": "other", "dialect": None, "title": None, "family": None}
    facts |= {
        "families": [],
        "embeddings": [],
        "lora": None,
        "metadata": {},
        "notes": [],
        "programs": {},
        "retarget": [],
    }
    return {**facts, "error": str(error)}


def _kind(stored: Stored, contents: Contents) -> str:
    if contents.embeddings:
        return "bundle" if stored.is_lora else "embedding"
    return "lora" if contents.rest else "other"


def _settled(embedding: Embedding, family: Family) -> Embedding:
    return replace(embedding, vectors=settle(embedding.vectors, family.widths))


def _embedding(embedding: Embedding) -> dict[str, Any]:
    return {"name": embedding.name, "vectors": {key: _tensor(tensor) for key, tensor in embedding.vectors.items()}}


def _tensor(tensor: RawTensor) -> dict[str, Any]:
    norms = _norms(tensor)
    return {
        "shape": list(tensor.shape),
        "dtype": tensor.dtype,
        "sha256": sha256(tensor.data).hexdigest(),
        "norms": None if norms is None else [norm if isfinite(norm) else None for norm in norms],
        "finite": norms is None or all(map(isfinite, norms)),
    }


def _norms(tensor: RawTensor) -> Sequence[float] | None:
    """Euclidean norm of each vector; None for types that are not in READABLE."""
    if tensor.dtype not in READABLE or len(tensor.shape) != 2:
        return None
    data, width = tensor.data, tensor.shape[1]
    size = len(data) // tensor.shape[0] if len(data) else 0
    rows = (RawTensor(tensor.dtype, (width,), data[at : at + size]) for at in range(0, len(data), size or 1))
    return [_length(values(row)) for row in rows]  # one row at a time: a number in Python takes eight times its bytes


def _length(numbers: Sequence[float]) -> float:
    if not all(map(isfinite, numbers)):
        return float("inf")
    largest = max(map(abs, numbers), default=0.0) or 1.0
    return round(largest * sqrt(fsum((number / largest) ** 2 for number in numbers)), 6)


def _notes(stored: Stored, contents: Contents, kinds: Sequence[Family]) -> list[str]:
    several = "which fits several text encoders; pass --family"
    notes = []
    for embedding in contents.embeddings:
        for key, tensor in embedding.vectors.items():
            if UNNAMED in key:
                fits = several if kinds else "which is the width of no text encoder that is known here"
                notes.append(f"{embedding.name}: {tensor.shape[-1]} wide, {fits}")
        live = [key for key in outputs(embedding.vectors) if any(embedding.vectors.get(key[:-4], _NONE).data)]
        if live:
            notes.append(
                f"{embedding.name}: {', '.join(live)} and input vectors that are not zero; OneTrainer uses the output "
                "vectors, which may be left from an earlier training"
            )
    if "clip_g" in stored.tensors and stored.tensors["clip_g"].shape[-1:] == (768,):
        notes.append("its clip_g is CLIP-L (OneTrainer wrote FLUX files so in 2024); read as clip_l")
    return notes


def _vector_notes(embeddings: Sequence[dict[str, Any]]) -> list[str]:
    """Vectors of zeros or of values that are not finite, by their number from 1."""
    notes = []
    for embedding in embeddings:
        for key, tensor in embedding["vectors"].items():
            norms = tensor["norms"] or []
            for what, wrong in (("all zeros", (0.0,)), ("not finite", (None,))):
                found = [str(place) for place, norm in enumerate(norms, 1) if norm in wrong]
                if found:
                    shown = f"{', '.join(found[:8])}{' ...' if len(found) > 8 else ''} of {len(norms)}"
                    notes.append(f"{embedding['name']}: {key} vector {shown} is {what}")
    return notes


_NONE = RawTensor("U8", (0,), b"")
