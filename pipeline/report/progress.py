"""Pictures that a run drew while it trained: one row through time for each prompt and seed."""

from __future__ import annotations

from pathlib import Path

from .folder import Json
from .pictures import Gallery, inside

COLUMNS = 10  # moments that are shown; of more, evenly spread ones, the first and the last among them
ROWS = 12
BUDGET = 1_000_000  # characters of the pictures' data URIs


def through_time(metrics: list[Json], folder: Path) -> Json:
    """`rows` of pictures by prompt and seed, each with `shots` (label, picture); `left` counts what is not shown.

    The lines of the metrics name the pictures (`pictures`: path, prompt, seed), so that a run can be followed.
    """
    lines = [line for line in metrics if line.get("pictures")]
    several = len({line.get("stage") for line in lines}) > 1
    chosen = _spread(lines, COLUMNS)
    rows: dict[tuple[str, int | None], list[tuple[str, Json]]] = {}
    for line in chosen:
        label = f"stage {line['stage']}, step {line['step']:,}" if several else f"step {line['step']:,}"
        for picture in line["pictures"]:
            rows.setdefault((picture["prompt"], picture.get("seed")), []).append((label, picture))
    shown = list(rows.items())[:ROWS]
    gallery = Gallery(sum(len(shots) for _, shots in shown), BUDGET)
    made = []
    for (prompt, seed), shots in shown:
        drawn = [(label, gallery.show(inside(folder, picture["path"]))) for label, picture in shots]
        made.append({"prompt": prompt, "seed": seed, "shots": drawn})
    return {"rows": made, "moments": len(chosen), "all": len(lines), "left": len(rows) - len(shown)}


def _spread(lines: list[Json], most: int) -> list[Json]:
    if len(lines) <= most:
        return lines
    return [lines[round(n * (len(lines) - 1) / (most - 1))] for n in range(most)]
