"""What the command line says of a finished run, under the table of its words."""

from __future__ import annotations

from typing import Any

PATHS = 12  # files of a program that are named
KINDS = {"word": "words", "pack": "words", "lora": "LoRA", "model": "model"}  # of files that serve all programs


def ending(manifest: dict[str, Any]) -> str:
    """The lines under the table of words: what was proved, and the files by what they are."""
    proofs = manifest["proofs"]
    lines = ["", "Proved: the vocabulary is bit for bit what it was; a gradient reached every vector that was trained;"]
    if "exports_verified" in proofs:
        lines += [f"{proofs['exports_verified']} of {proofs['exports_declared']} exports read back as they went in."]
    files: dict[str, dict[str, None]] = {}  # names in order, each once
    for row in manifest["artefacts"]:
        if row["kind"] != "text":
            label, path = _shown(row)
            files.setdefault(label, {})[path] = None
    return "\n".join([*lines, *(f"  {label}: {_some(list(paths))}" for label, paths in files.items())])


def _shown(row: dict[str, Any]) -> tuple[str, str]:
    """What a file is, and its path: a program's where it lies in that one's folder, else by its kind.

    Words by themselves are in the dialect of a program too, which need not be one that the recipe exports for. The
    files of a model's folder are shown as that folder.
    """
    _, folder, *rest = row["path"].split("/")  # of exports/
    if rest and folder == row["program"]:
        return folder, row["path"]
    if row["kind"] == "model" and rest:
        return KINDS["model"], f"exports/{folder}/"
    return KINDS[row["kind"]], row["path"]


def _some(paths: list[str]) -> str:
    """The first few; where there are many, the others are counted."""
    rest = f" and {len(paths) - PATHS:,} more" if len(paths) > PATHS else ""
    return ", ".join(paths[:PATHS]) + rest
