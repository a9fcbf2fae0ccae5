"""Measures Pivotune against the goals it sets itself: `python benchmarks/run.py [row ...]`.

Prints a table and writes results.json and RESULTS.md beside this file. All times are ratios within one run.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import version
from platform import python_version

from measure import HERE, Row

# name: the module whose rows() measures it
ROWS = {
    "step": "rows_step",
    "memory": "rows_memory",
    "encoder": "rows_encoder",
    "embeddings": "rows_embeddings",
    "flops": "rows_flops",
    "lora": "rows_lora",
    "setup": "rows_setup",
    "start": "rows_start",
    "converters": "rows_converters",
    "full": "rows_full",
    "families": "rows_families",
    "quickstart": "rows_quickstart",
}
PACKAGES = ("torch", "diffusers", "transformers", "peft")


def main(names: list[str]) -> int:
    unknown = [name for name in names if name not in ROWS]
    if unknown:
        print(f"no row {', '.join(unknown)}; there are {', '.join(ROWS)}", file=sys.stderr)
        return 2
    path = HERE / "results.json"
    results = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    missed = False
    for name in names or ROWS:
        rows: Callable[[], list[Row]] = import_module(ROWS[name]).rows
        found = rows()
        for row in found:
            print(line(row), flush=True)
            missed |= not row.met
        results[name] = {"versions": versions(), "rows": [row.record() for row in found]}
        path.write_text(json.dumps(results, indent=2) + "\n", "utf-8")
        (HERE / "RESULTS.md").write_text(markdown(results), "utf-8")
    return int(missed)


def versions() -> dict[str, str]:
    return {"python": python_version(), **{package: version(package) for package in PACKAGES}}


def line(row: Row) -> str:
    low, high = (number(value) for value in (min(row.values), max(row.values)))
    verdict = "met" if row.met else "MISSED"
    return f"{verdict:6}  {number(row.median):>8}{row.unit}  ({low} to {high})  {row.name}: {row.goal}"


def number(value: float) -> str:
    """Ratios far below one read better as a fraction."""
    return f"1/{1 / value:.0f}" if 0 < value < 0.2 else f"{value:.3f}" if value < 10 else f"{value:,.0f}"


def markdown(results: dict[str, dict]) -> str:
    lines = [
        "# Measured",
        "",
        "Written by `python benchmarks/run.py`. Ratios of times are of CPU time, one thread, within",
    ]
    lines += ["one run; spread is lowest to highest of the rounds.", ""]
    lines += ["| what | goal | measured | spread | rounds | verdict |", "|---|---|---|---|---|---|"]
    for name in [name for name in ROWS if name in results]:
        for row in results[name]["rows"]:
            low, high = number(min(row["values"])), number(max(row["values"]))
            spread = low if low == high else f"{low} to {high}"
            verdict = "met" if row["met"] else "**missed**"
            cells = (row["name"], row["goal"], number(row["median"]) + row["unit"], spread, len(row["values"]), verdict)
            lines.append("| " + " | ".join(map(str, cells)) + " |")
    used = {name: found["versions"] for name, found in results.items()}
    texts = {", ".join(f"{package} {number}" for package, number in found.items()) for found in used.values()}
    return "\n".join([*lines, "", *(f"With {text}." for text in sorted(texts)), ""])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
