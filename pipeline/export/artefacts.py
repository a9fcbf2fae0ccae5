"""The manifest's rows of exported files, and the check that everything that was declared is on the disk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...converters.programs import Program
from ...converters.write import Written
from ..errors import StageError
from ..files import sha256
from ..text import count_of, first_few
from .context import ExportContext


def note(
    context: ExportContext,
    path: Path,
    kind: str,
    program: Program | None = None,
    written: Written | None = None,
    embedding: str | None = None,
    trigger: str | None = None,
    embeddings: Sequence[str] = (),
) -> None:
    """Add a row for a file: `kind` is embedding, pack (of `embeddings`), lora, bundle, model or text."""
    put = None
    if program is not None and kind != "text":
        as_lora = kind in ("bundle", "lora") or (kind == "pack" and program.several == "bundle")
        put = program.lora_folder if as_lora else program.folder
    row: dict[str, Any] = {
        "path": path.relative_to(context.folder).as_posix(),
        "sha256": sha256(path),
        "bytes": path.stat().st_size,
        "kind": kind,
        "program": program.name if program else None,
        "dialect": written.dialect if written else None,
        "trigger": written.trigger if written else trigger,
        "put_in": put,
        "embedding": embedding,
    }
    if embeddings:
        row["embeddings"] = list(embeddings)
    context.artefacts.append(row)


def count_verified(context: ExportContext, declared: int) -> int:
    """How many exports still have the hash they had when they were verified.

    A model's folder is one export; all of its files count. Raises StageError unless there are as many as `declared`.
    """
    exports: dict[str, list[dict[str, Any]]] = {}
    for row in context.artefacts:
        if row["kind"] != "text":
            exports.setdefault(_export_of(row), []).append(row)
    whole = [path for path, rows in exports.items() if all(_is_intact(context.folder, row) for row in rows)]
    if len(whole) != declared:
        raise StageError(f"{count_of(declared, 'file')} should be exported; verified: {len(whole)}")
    return len(whole)


def count_embeddings(context: ExportContext, files: Mapping[str, Path]) -> dict[str, int]:
    """How many embeddings the recipe declares, how many have a file, and how many of those files are verified.

    StageError unless all three are the same.
    """
    declared = [embedding.placeholder for embedding in context.recipe.embeddings]
    exported = {name: files[name].relative_to(context.folder).as_posix() for name in declared if name in files}
    paths = set(exported.values())
    contained = {
        row["path"]: set(row.get("embeddings", (row["embedding"],)))
        for row in context.artefacts
        if row["kind"] in ("embedding", "pack") and row["path"] in paths and _is_intact(context.folder, row)
    }
    whole = {name for name, path in exported.items() if name in contained.get(path, ())}
    missing = sorted(set(declared) - whole)
    if missing:
        names = first_few([repr(name) for name in missing])
        raise StageError(
            f"{count_of(len(declared), 'embedding')} should be exported; verified: {len(whole)}; missing: {names}"
        )
    return {"declared": len(declared), "exported": len(exported), "verified": len(whole)}


def require_artefacts(folder: Path, artefacts: Sequence[Mapping[str, Any]]) -> None:
    """StageError when an exported file was deleted or changed after it was verified.

    Of a model, which is large, only the sizes of the files are checked; all other files are read again.
    """
    lost = [row["path"] for row in artefacts if not _is_unchanged(folder, row)]
    if lost:
        raise StageError(f"deleted or changed after they were exported and verified: {first_few(lost)}")


def _is_unchanged(folder: Path, row: Mapping[str, Any]) -> bool:
    path = folder / row["path"]
    return path.is_file() and path.stat().st_size == row["bytes"] if row["kind"] == "model" else _is_intact(folder, row)


def _export_of(row: dict[str, Any]) -> str:
    """The export that a file belongs to: itself, or the folder of a model."""
    parts = row["path"].split("/")
    end = next((n for n, part in enumerate(parts) if row["kind"] == "model" and part.endswith("_model")), len(parts))
    return "/".join(parts[: end + 1])


def _is_intact(folder: Path, row: Mapping[str, Any]) -> bool:
    path = folder / row["path"]
    return path.is_file() and sha256(path) == row["sha256"]
