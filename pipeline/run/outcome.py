"""However a run ends, its manifest and report say so, and an error of the machine is one line."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from ...converters.errors import ConvertError
from ..distributed import peer_failure
from ..errors import StageError
from ..export.artefacts import require_artefacts
from ..export.finished import remove_finished
from ..export.last_good import remove_last_good
from ..files import write_json
from ..records import json_safe
from ..report.page import write_report
from ..system_errors import out_of_memory, system_error_text
from .context import RunContext
from .signals import Stopped

LESS_MEMORY = "a smaller batch_size with gradient_accumulation, gradient_checkpointing = true, a smaller resolution"


def machine_message(error: BaseException, way_out: str = "") -> str | None:
    """One line about an error of the machine and the way out; None for any other error, which is a fault of ours.

    `way_out` says what needs less memory at this place.
    """
    memory = out_of_memory(error)
    if memory is not None:
        return f"{memory.partition(';')[0]}; try {way_out}" if way_out else memory
    if isinstance(error, OSError):
        return system_error_text(error)
    if isinstance(error, SafetensorError):
        full = "the disk is full; make room: " if "No space left" in str(error) else ""
        return full + str(error).splitlines()[0]
    return None


@contextmanager
def as_stage_error(way_out: str = "") -> Iterator[None]:
    """Turn an error of the machine, or of another process that is gone, into a StageError; all others pass."""
    try:
        yield
    except (OSError, RuntimeError, MemoryError, SafetensorError) as error:
        gone = peer_failure(error)
        if gone is not None:
            raise gone from error
        text = machine_message(error, way_out)
        if text is None:
            raise
        raise StageError(text) from error


def lost_folder(folder: Path) -> str | None:
    """What is said when the run's own folder has been taken away under it, and perhaps been made anew since."""
    if (folder / "manifest.json").exists():
        return None
    return f"{folder}: the run's folder was deleted or moved while the run was at work, with what it held"


FINISHING, FINISHED = "finishing", "finished"


def finish(folder: Path, manifest: dict[str, Any]) -> None:
    """Write the report, remove what the verified exports replace, and say `finished` last. May be repeated."""
    _write(folder, manifest, FINISHING)
    write_report(folder)
    if manifest.get("finished", {}).get("removed"):
        remove_finished(folder)
    remove_last_good(folder)
    _write(folder, manifest, FINISHED)


def complete(folder: Path, left: Mapping[str, Any]) -> dict[str, Any]:
    """Bring a run whose status is `finishing` to its end; its manifest. StageError if an export has changed since."""
    try:
        require_artefacts(folder, left["artefacts"])
    except StageError as error:
        raise StageError(
            f"{folder}: {error}; put them back, or start over with --fresh (and without or with another --out)"
        ) from error
    manifest = dict(left)
    finish(folder, manifest)
    return manifest


def _write(folder: Path, manifest: dict[str, Any], status: str) -> None:
    manifest["status"] = status
    write_json(folder / "manifest.json", json_safe(manifest))


PATHS = 12  # files of a program that are named
KINDS = {
    "embedding": "embeddings",
    "pack": "embeddings",
    "lora": "LoRA",
    "model": "model",
}  # of files that serve all programs


def closing_lines(manifest: dict[str, Any]) -> str:
    """The lines under the table of embeddings: what was proved, and the files by what they are."""
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

    Embeddings by themselves are in the dialect of a program too, which need not be one that the recipe exports for. The
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


COMPLETES = "the same command completes the report and the clean-up"


@contextmanager
def finish_run_record(context: RunContext, manifest: dict[str, Any], begin: float) -> Iterator[None]:
    """Leave manifest and report whatever happens in the block, which began at `begin` on the monotonic clock.

    Raises StageError or ConvertError for what the user can mend, `Stopped` when a signal ended the run; an error of
    the machine (disk, memory, rights) is one of these too.
    """
    before = float(manifest["seconds"])
    try:
        with _for_people(context):
            yield
    except BaseException as error:
        people = isinstance(error, (StageError, ConvertError))
        text = str(error) if people else f"{type(error).__name__}: {error}"
        manifest |= {"status": "stopped" if isinstance(error, Stopped) else "failed", "error": text}
        try:
            _leave(context, manifest, before + time.monotonic() - begin)
        except StageError as second:
            context.progress(f"manifest and report are as they were: {second}")
        except BaseException as second:
            if not _impatient(context, second):
                raise
            context.progress(
                f"stopped at once, before the report was written; pivotune report {context.folder} writes it"
            )
        raise
    try:
        manifest["seconds"] = round(before + time.monotonic() - begin, 3)
        with as_stage_error():
            context.metrics.close()
            finish(context.folder, manifest)
    except StageError as error:
        text = f"all is trained and exported, but the run's end cannot be written: {error}"
        raise StageError(f"{text}; {COMPLETES}") from error
    except BaseException as error:
        if not _impatient(context, error):
            raise
        raise Stopped(f"all is trained and exported, but not the report; {COMPLETES}") from error


@contextmanager
def _for_people(context: RunContext) -> Iterator[None]:
    try:
        with as_stage_error():
            yield
    except BaseException as error:
        if _impatient(context, error):
            raise _at_once(context) from error
        if not isinstance(error, (StageError, ConvertError)):
            raise
        gone = lost_folder(context.folder)
        if gone is not None:
            raise StageError(gone) from error
        raise


def _impatient(context: RunContext, error: BaseException) -> bool:
    """Whether a second Ctrl-C ended what was at work; a library may have made an error of its own of it."""
    return isinstance(error, KeyboardInterrupt) or (context.checkpointer.asked.twice and isinstance(error, Exception))


def _at_once(context: RunContext) -> Stopped:
    return Stopped(f"stopped at once; the same command resumes the run from the last checkpoint in {context.folder}")


def _leave(context: RunContext, manifest: dict[str, Any], seconds: float) -> None:
    """The last manifest and the report. Raises StageError when the disk takes them not."""
    manifest["seconds"] = round(seconds, 3)
    with as_stage_error():
        context.metrics.close()
        write_report_of(context, manifest)


def write_report_of(context: RunContext, manifest: dict[str, Any]) -> None:
    """Write the manifest, and the report made from it."""
    write_json(context.folder / "manifest.json", json_safe(manifest))
    write_report(context.folder)
