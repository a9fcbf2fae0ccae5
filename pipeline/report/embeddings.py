"""What became of each embedding, arranged for people. Needs no library, so that the command line may use it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

Json = dict[str, Any]

WORD_END = "</w>"
LOUD = 3.0  # times the vocabulary's median norm
DROWNS = "so loud an embedding may drown others of a prompt; a stage `rescale` after train brings it back"


def printable(text: str) -> str:
    """On one line and without control characters: names come from files and may hold anything."""
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)


def spelled(pieces: list[str]) -> list[str]:
    """Pieces of a vocabulary as people read them: `ring</w>` is ring; one that goes on ends in a hyphen."""
    if not any(piece.endswith(WORD_END) for piece in pieces):
        return [piece.replace("▁", " ").strip() or piece for piece in pieces]
    return [_clip_piece(piece) for piece in pieces]


def _clip_piece(piece: str) -> str:
    if piece.endswith(WORD_END):
        return piece.removesuffix(WORD_END) or piece
    return piece if piece.startswith("<|") or not piece[-1:].isalnum() else piece + "-"


def fate(embedding: Json, finished: bool) -> str:
    """Whether the embedding was trained, and until when."""
    if not embedding.get("train", True):
        return "kept as it was"
    if embedding.get("stopped_at") is not None:
        return f"trained, held still from step {embedding['stopped_at']:,}"
    return "trained to the end" if finished else "trained"


def vectors_of(embedding: Json) -> int:
    """How many vectors the embedding has; every encoder agrees."""
    encoders = (embedding.get("encoders") or {}).values()
    return max((len(e.get("tokens") or e.get("norm_after") or ()) for e in encoders), default=0)


def rows(encoder: Json) -> list[Json]:
    """One row a vector: its number, the piece it started from, norms, way, and its nearest pieces."""
    tokens, nearest = encoder.get("tokens") or [], encoder.get("nearest") or []
    known = [piece for neighbours in nearest for piece, _ in neighbours] + tokens
    names = dict(zip(known, spelled(known), strict=True))
    made = []
    for n in range(max(len(tokens), len(encoder.get("norm_after") or []))):
        row: Json = {"number": n + 1, "token": names[tokens[n]] if n < len(tokens) else ""}
        for key in ("norm_before", "norm_after", "distance", "cosine_to_start"):
            values = encoder.get(key) or []
            row[key] = values[n] if n < len(values) else None
        row["nearest"] = [(names[piece], cosine) for piece, cosine in (nearest[n] if n < len(nearest) else [])]
        made.append(row)
    return made


def start_of(encoder: Json) -> Json:
    """What the initial text became: the pieces kept, those cut off, and how many vectors were padded."""
    tokens, cut = encoder.get("tokens") or [], encoder.get("cut") or []
    names = spelled(tokens + cut)
    kept = encoder.get("kept", len(tokens))
    return {"kept": names[:kept], "cut": names[len(tokens) :], "padded": encoder.get("padded", 0)}


def usual(manifest: Json, encoder: str) -> dict[str, float]:
    """The vocabulary's norms in this encoder, or nothing where the run did not come so far."""
    found = (manifest.get("model") or {}).get("encoders", {}).get(encoder, {}).get("norm") or {}
    return dict(found) if {"low", "median", "high"} <= set(found) else {}


def loudness(vectors: Iterable[Json], usual: dict[str, float]) -> float | None:
    """How many times the vocabulary's median norm the longest of these vectors has come to; None where that is usual.

    `vectors` are rows (see `rows`); those that training has not made longer are left out.
    """
    median = usual.get("median") or math.nan
    ends = [row["norm_after"] for row in vectors if row["norm_after"] and row["norm_after"] > (row["norm_before"] or 0)]
    grown = [norm / median for norm in ends]
    return max((times for times in grown if math.isfinite(times) and times > LOUD), default=None)


def rescaled(manifest: Json) -> bool:
    """Whether the recipe itself says which norms its embeddings end with."""
    return any(stage.get("kind") == "rescale" for stage in manifest.get("stages") or [])


def averaged(manifest: Json) -> str:
    """What a curve of vectors must say where files have not what it shows: the averages of what takes the steps."""
    stages = [stage for stage in (manifest.get("recipe") or {}).get("stage", ()) if stage.get("embeddings")]
    kinds = [(stage.get("optimizer") or {}).get("kind", "") for stage in stages]
    if any(stage.get("ema") for stage in stages) or any(kind.endswith("schedule-free") for kind in kinds):
        return " Shown are the vectors that take the steps; the files have their averages."
    return ""
