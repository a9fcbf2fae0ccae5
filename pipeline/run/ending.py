"""What the command line says of a finished run, under the table of its words."""

from __future__ import annotations

from typing import Any

PATHS = 12  # files of a program that are named


def ending(manifest: dict[str, Any]) -> str:
    """The lines under the table of words: what was proved, and the files by program."""
    proofs = manifest["proofs"]
    lines = ["", "Proved: the vocabulary is bit for bit what it was; a gradient reached every vector that was trained;"]
    if "exports_verified" in proofs:
        lines += [f"{proofs['exports_verified']} of {proofs['exports_declared']} exports read back as they went in."]
    files: dict[str, list[str]] = {}
    for row in manifest["artefacts"]:
        if row["kind"] != "text":
            files.setdefault(row["program"] or "LoRA", []).append(row["path"])
    return "\n".join([*lines, *(f"  {program}: {_some(paths)}" for program, paths in files.items())])


def _some(paths: list[str]) -> str:
    """The first few; where there are many, the others are counted."""
    rest = f" and {len(paths) - PATHS:,} more" if len(paths) > PATHS else ""
    return ", ".join(paths[:PATHS]) + rest
