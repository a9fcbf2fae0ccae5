"""The few lines that open the page, the proofs, the stages and the recipe."""

from __future__ import annotations

import json
import math
from typing import Any

from . import show
from .folder import Json

PROOFS = (
    ("vocabulary_unchanged", "The vocabulary is bit for bit what it was"),
    ("gradient_reached", "A gradient reached every vector"),
)


def facts(manifest: Json, metrics: list[Json]) -> list[tuple[str, str]]:
    """Label and value of each tile at the top; what is not known is left out."""
    model, data = manifest.get("model") or {}, manifest.get("data") or {}
    checked = [state for _, _, state in proofs(manifest)]
    losses = [row.get("loss") for row in metrics]
    device = (manifest.get("environment") or {}).get("device")
    found = [
        ("Model", model.get("base")),
        ("Training pictures", f"{data['pictures']:,}" if data else None),
        ("Steps", f"{len(metrics):,}"),
        ("Loss", _from_to(losses)),
        ("Time", show.duration(manifest.get("seconds")) + (f" on {device}" if device else "")),
        ("Proofs that hold", f"{checked.count(True)} of {len(checked)}"),
    ]
    return [(label, value) for label, value in found if value is not None]


def _from_to(losses: list[Any]) -> str | None:
    """Mean of the first and of the last tenth of the steps: single steps are too noisy to tell anything."""
    finite = [loss for loss in losses if isinstance(loss, (int, float)) and math.isfinite(loss)]
    if not finite:
        return None
    tenth = max(1, len(finite) // 10)
    first, last = (sum(part) / tenth for part in (finite[:tenth], finite[-tenth:]))
    return f"{show.number(first)} → {show.number(last)}"


def proofs(manifest: Json) -> list[tuple[str, str, bool | None]]:
    """What was claimed, for what, and whether it holds; None where the run did not come so far."""
    found = manifest.get("proofs") or {}
    made: list[tuple[str, str, bool | None]] = []
    for key, claim in PROOFS:
        states = found.get(key) or {}
        failed = [name for name, holds in states.items() if not holds]
        named = list(states) if len(states) <= 6 else [f"all {len(states):,}"]
        detail = f"not so for {', '.join(failed)}" if failed else ", ".join(named)
        made.append((claim, detail, not failed if states else None))
    done, wanted = found.get("exports_verified"), found.get("exports_declared")
    detail = "" if done is None or wanted is None else f"{done:,} of {wanted:,}"
    made.append(("Exported files, read back, give the same vectors", detail, done == wanted if detail else None))
    clean = found.get("ejected_clean")
    made.append(("Encoders and tokenizers were left as they were found", "", clean))
    return made


def stages(manifest: Json) -> list[Json]:
    """Each stage with its share of the time and, where the recipe tells, its options."""
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
        made.append({**stage, "share": share, "options": [(k, _short(v)) for k, v in options.items() if v is not None]})
    return made


def _short(value: Any) -> str:
    if isinstance(value, list) and all(isinstance(v, (str, int, float)) for v in value):
        return ", ".join(map(str, value))
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def recipe_text(manifest: Json, most: int) -> str:
    """The resolved recipe as JSON, cut off where it would swell the page."""
    text = json.dumps(manifest.get("recipe") or {}, indent=2, ensure_ascii=False)
    return text if len(text) <= most else f"{text[:most]}\n... the rest stands in manifest.json"
