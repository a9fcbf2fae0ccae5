"""The results of each embedding, prepared for page and table. Needs no library: the command line uses it too."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

Json = dict[str, Any]

WORD_END = "</w>"
LARGE = 3.0  # times the vocabulary's median norm
TOO_LARGE = "it may overpower the rest of the prompt; add a rescale stage after train"
ROUNDING = 1e-3  # of a norm: a vector that is not trained, or was only rounded, has not grown


def printable(text: str) -> str:
    """Text without control characters: names come from files and may contain anything."""
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)


def spelled(pieces: list[str]) -> list[str]:
    """Readable tokens of a vocabulary: `ring</w>` is ring; a token within a word of the text ends in a hyphen."""
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
        return "not trained"
    if embedding.get("stopped_at") is not None:
        return f"trained until step {embedding['stopped_at']:,}, then frozen"
    return "trained to the end" if finished else "trained"


def vectors_of(embedding: Json) -> int:
    """How many vectors the embedding has for each text encoder."""
    encoders = (embedding.get("encoders") or {}).values()
    return max((len(e.get("tokens") or e.get("norm_after") or ()) for e in encoders), default=0)


def rows(encoder: Json) -> list[Json]:
    """One row for each vector: its number, initial token, norms, distance and nearest tokens."""
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
    """The tokens of the initial text that were kept and truncated, and how many vectors were padded."""
    tokens, cut = encoder.get("tokens") or [], encoder.get("cut") or []
    names = spelled(tokens + cut)
    kept = encoder.get("kept", len(tokens))
    return {"kept": names[:kept], "cut": names[len(tokens) :], "padded": encoder.get("padded", 0)}


def usual(manifest: Json, encoder: str) -> dict[str, float]:
    """The norms of this encoder's vocabulary; empty where the run did not reach them."""
    found = (manifest.get("model") or {}).get("encoders", {}).get(encoder, {}).get("norm") or {}
    return dict(found) if {"low", "median", "high"} <= set(found) else {}


def excessive_norm(vectors: Iterable[Json], usual: dict[str, float]) -> float | None:
    """The largest of these vectors' norms as a multiple of the vocabulary's median; None where it is usual.

    `vectors` are rows (see `rows`); those whose norm did not grow are left out.
    """
    median = usual.get("median") or math.nan
    pairs = [(row["norm_after"] or 0.0, row["norm_before"] or 0.0) for row in vectors]
    grown = [after / median for after, before in pairs if after > before * (1 + ROUNDING)]
    return max((times for times in grown if math.isfinite(times) and times > LARGE), default=None)


def rescaled(manifest: Json) -> bool:
    """Whether the recipe has a rescale stage, which sets the norms."""
    return any(stage.get("kind") == "rescale" for stage in manifest.get("stages") or [])


def ema_note(manifest: Json) -> str:
    """The text below curves of vectors whose exported files contain averaged weights."""
    stages = [stage for stage in (manifest.get("recipe") or {}).get("stage", ()) if stage.get("embeddings")]
    kinds = [(stage.get("optimizer") or {}).get("kind", "") for stage in stages]
    if any(stage.get("ema") for stage in stages) or any(kind.endswith("schedule-free") for kind in kinds):
        return " Curves show the raw weights; exported files contain the averaged (EMA) weights."
    return ""
