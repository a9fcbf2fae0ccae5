"""Numbers and texts as the report page shows them."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path, PurePath
from typing import Any

from ...converters.families import families
from ..records import Json
from ..text import count_of, first_few, first_lines, fits_only
from . import facts as show
from .images import inside


def number(value: Any, digits: int = 3) -> str:
    """A number with this many significant digits; a dash where there is none."""
    if not isinstance(value, (int, float)):
        return "–"
    if not math.isfinite(value):
        return "not finite"
    if value and not 1e-4 <= abs(value) < 1e6:
        return f"{value:.{digits - 1}e}"
    places = max(0, digits - 1 - math.floor(math.log10(abs(value)))) if value else digits - 1
    return f"{value:,.{min(places, 6)}f}".replace("-", "−")


def duration(seconds: Any) -> str:
    """Seconds in a unit that reads well."""
    if not isinstance(seconds, (int, float)) or not math.isfinite(seconds):
        return "–"
    if seconds < 0.1:
        return "< 0.1 s"
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600:,} h {whole % 3600 // 60:02d} min"


def size(count: Any) -> str:
    """Bytes in units of 1024."""
    if not isinstance(count, (int, float)):
        return "–"
    value = float(count)
    for unit in ("bytes", "KiB", "MiB"):
        if value < 1024:
            return count_of(count, "byte") if unit == "bytes" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} GiB"


def norm_scale(rows: list[dict[str, Any]], usual: dict[str, float]) -> dict[str, Any]:
    """Positions of norms on one scale for all vectors of a text encoder, in percent; empty without a vocabulary."""
    values = [row[key] for row in rows for key in ("norm_before", "norm_after")]
    known = [float(v) for v in values if isinstance(v, (int, float)) and math.isfinite(v)]
    if not usual or not known:
        return {}
    bottom, top = min(usual["low"], *known), max(usual["high"], *known)
    room = 0.15 * (top - bottom) or 1.0
    bottom, top = bottom - room, top + room

    def at(value: Any) -> float | None:
        fits = isinstance(value, (int, float)) and math.isfinite(value)
        return round(100 * (float(value) - bottom) / (top - bottom), 2) if fits else None

    low, median, high = (at(usual[name]) or 0.0 for name in ("low", "median", "high"))
    marks = [(at(row["norm_before"]), at(row["norm_after"])) for row in rows]
    return {"low": low, "width": round(high - low, 2), "median": median, "marks": marks}


CODE, CODES = 4000, 5  # characters of a text, and texts
NOTES = 20  # lines of a stage

PROOFS = (
    ("vocabulary_unchanged", "The vocabulary is unchanged, bit for bit"),
    ("gradient_reached", "A gradient reached every trained embedding"),
)


def facts(manifest: Json, metrics: list[Json]) -> list[tuple[str, str]]:
    """Label and value of each tile at the top; unknown values are left out."""
    model, data = manifest.get("model") or {}, manifest.get("data") or {}
    checked = [state for _, _, state in proofs(manifest)]
    losses = [row.get("loss") for row in metrics]
    running = manifest.get("status") == "running"
    device = (manifest.get("environment") or {}).get("device")
    found = [
        ("Model", _last_part(model.get("base"))),
        ("Training images", f"{data['images']:,}" if data else None),
        ("Steps", _steps(manifest, len(metrics)) if running else f"{len(metrics):,}"),
        ("Loss", _from_to(losses)),
        ("Time", None if running else show.duration(manifest.get("seconds")) + (f" on {device}" if device else "")),
        ("Proofs", None if running else f"{checked.count(True)} of {len(checked)}"),
    ]
    return [(label, value) for label, value in found if value is not None]


def _steps(manifest: Json, done: int) -> str:
    """How many steps are done, and how many the recipe has."""
    stages = (manifest.get("recipe") or {}).get("stage") or []
    asked = sum(stage.get("steps") or 0 for stage in stages if stage.get("kind") == "train")
    return f"{done:,} of {asked:,}" if asked else f"{done:,}"


def _last_part(base: str | None) -> str | None:
    """A path by its last part; a hub id as it is."""
    return PurePath(base).name if base and PurePath(base).is_absolute() else base


def _from_to(losses: list[Any]) -> str | None:
    """Mean of the first and of the last tenth of the steps: single steps are too noisy."""
    finite = [loss for loss in losses if isinstance(loss, (int, float)) and math.isfinite(loss)]
    if not finite:
        return None
    tenth = max(1, len(finite) // 10)
    first, last = (sum(part) / tenth for part in (finite[:tenth], finite[-tenth:]))
    return f"{show.number(first)} → {show.number(last)}"


def proofs(manifest: Json) -> list[tuple[str, str, bool | None]]:
    """Each proof as (claim, of what, whether it holds); None where the run did not reach it."""
    found = manifest.get("proofs") or {}
    made: list[tuple[str, str, bool | None]] = []
    for key, claim in PROOFS:
        states = found.get(key) or {}
        failed = [name for name, holds in states.items() if not holds]
        named = list(states) if len(states) <= 6 else [f"all {len(states):,}"]
        detail = f"failed for {', '.join(failed)}" if failed else ", ".join(named)
        made.append((claim, detail, not failed if states else None))
    done, wanted = found.get("exports_verified"), found.get("exports_declared")
    detail = "" if done is None or wanted is None else f"{done:,} of {wanted:,}"
    made.append(("Exported files are verified", detail, done == wanted if detail else None))
    clean = found.get("ejected_clean")
    made.append(("Text encoders and tokenizers are restored", "", clean))
    return made


def stages(manifest: Json) -> list[Json]:
    """Each stage with its share of the time and its options in the recipe."""
    ran = manifest.get("stages") or []
    recipe = manifest.get("recipe") or {}
    asked = recipe.get("stages") or recipe.get("stage") or []
    total = sum(stage.get("seconds") or 0 for stage in ran) or 1
    made = []
    for n, stage in enumerate(ran):
        wish = asked[n] if n < len(asked) and isinstance(asked[n], dict) else {}
        options = wish.get("options", {k: v for k, v in wish.items() if k != "kind"})
        if wish.get("kind") != stage["kind"]:
            options = {}
        share = round(100 * (stage.get("seconds") or 0) / total, 1)
        shown = [(key, _short(value)) for key, value in options.items() if value is not None]
        flow = {key: first_few(stage.get(key) or [], 6) for key in ("inputs", "outputs")}
        made.append({**stage, **flow, "share": share, "options": shown, "notes": _first(stage.get("notes") or [])})
    return made


def _first(notes: list[str]) -> list[str]:
    """The first notes of a stage, and how many more there are."""
    return first_lines(notes, NOTES, "note in manifest.json", "notes in manifest.json")


def _short(value: Any) -> str:
    """A value without brackets and quotes."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {_short(one)}" for key, one in value.items())
    if isinstance(value, list):
        return ", ".join(map(_short, value))
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def files(manifest: Json, folder: Path) -> tuple[list[Json], list[tuple[str, str]]]:
    """Exported files, one row for those that belong together, and the code that loads them as (path, text)."""
    rows: dict[tuple[Any, ...], Json] = {}
    code = []
    for file in manifest.get("artefacts") or []:
        if file["kind"] == "text":
            source = inside(folder, file["path"])
            if file["path"].endswith(".py") and source and os.path.isfile(source):
                code.append((file["path"], source.read_text(encoding="utf-8", errors="replace")[:CODE]))
            continue
        key = tuple(file.get(name) for name in ("program", "kind", "embedding", "trigger", "put_in"))
        rows.setdefault(key, {**file, "files": []})["files"].append(file)
    return list(rows.values()), code[:CODES]


def fits(manifest: Json) -> str:
    """For a small model: that the files fit no other model."""
    model = manifest.get("model") or {}
    family = families().get(str(model.get("family")))
    sizes = {key: encoder["width"] for key, encoder in (model.get("encoders") or {}).items() if "width" in encoder}
    return fits_only(str(model.get("base")), family, sizes) if family is not None else ""


def recipe_text(manifest: Json, most: int) -> str:
    """The resolved recipe as JSON, truncated to `most` characters."""
    text = json.dumps(manifest.get("recipe") or {}, indent=2, ensure_ascii=False)
    return text if len(text) <= most else f"{text[:most]}\n… the rest is in manifest.json"
