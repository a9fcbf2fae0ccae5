"""The end of a run: manifest and report whatever happens, errors of the machine as one line, closing lines."""

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
from ..export.write import remove_last_good
from ..files import write_json
from ..records import json_safe
from ..system_errors import out_of_memory, system_error_text
from ..text import count_of, first_few
from .context import RunContext
from .signals import Stopped

LESS_MEMORY = "a smaller batch_size with gradient_accumulation, gradient_checkpointing = true, a smaller resolution"


def machine_message(error: BaseException, advice: str = "") -> str | None:
    """One line about an error of the machine and what to do; None for any other error, which is a bug.

    `advice` names what needs less memory.
    """
    memory = out_of_memory(error)
    if memory is not None:
        return f"{memory.partition(';')[0]}; try {advice}" if advice else memory
    if isinstance(error, OSError):
        return system_error_text(error)
    if isinstance(error, SafetensorError):
        full = "the disk is full; make room: " if "No space left" in str(error) else ""
        return full + str(error).splitlines()[0]
    return None


@contextmanager
def as_stage_error(advice: str = "") -> Iterator[None]:
    """Turn errors of the machine, or of another process that has ended, into StageErrors; others pass."""
    try:
        yield
    except (OSError, RuntimeError, MemoryError, SafetensorError) as error:
        gone = peer_failure(error)
        if gone is not None:
            raise gone from error
        text = machine_message(error, advice)
        if text is None:
            raise
        raise StageError(text) from error


def lost_folder_message(folder: Path) -> str | None:
    """The message when the run's folder was deleted or moved during the run; None when it is there."""
    if (folder / "manifest.json").exists():
        return None
    return f"{folder}: the run folder was deleted or moved during the run"


FINISHING, FINISHED = "finishing", "finished"


def finish(folder: Path, manifest: dict[str, Any]) -> None:
    """Write the report, delete what the verified exports replace, and set the status `finished`. May be repeated."""
    _write(folder, manifest, FINISHING)
    write_report(folder)
    if manifest.get("finished", {}).get("removed"):
        remove_finished(folder)
    remove_last_good(folder)
    _write(folder, manifest, FINISHED)


def complete(folder: Path, unfinished: Mapping[str, Any]) -> dict[str, Any]:
    """Finish a run whose status is `finishing`; returns its manifest. StageError if an export has changed since."""
    try:
        require_artefacts(folder, unfinished["artefacts"])
    except StageError as error:
        raise StageError(
            f"{folder}: {error}; restore them, or start over with --fresh (and without or with another --out)"
        ) from error
    manifest = dict(unfinished)
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
    """The lines below the table of embeddings: what was proved, and the exported files by kind."""
    proofs = manifest["proofs"]
    lines = ["", "Proved: the vocabulary is unchanged, bit for bit; a gradient reached every trained embedding;"]
    if "exports_verified" in proofs:
        declared = count_of(proofs["exports_declared"], "exported file")
        verb = "is" if proofs["exports_declared"] == 1 else "are"
        lines += [f"{proofs['exports_verified']} of {declared} {verb} verified."]
    files: dict[str, dict[str, None]] = {}  # names in order, each once
    for row in manifest["artefacts"]:
        if row["kind"] != "text":
            label, path = _shown(row)
            files.setdefault(label, {})[path] = None
    return "\n".join([*lines, *(f"  {label}: {first_few(list(paths), PATHS)}" for label, paths in files.items())])


def _shown(row: dict[str, Any]) -> tuple[str, str]:
    """The label and path of a file: its program where it is in that program's folder, else its kind.

    Standalone embeddings are in the dialect of a program too, which need not be a target of the recipe. The files of a
    model folder are shown as that folder.
    """
    _, folder, *rest = row["path"].split("/")  # of exports/
    if rest and folder == row["program"]:
        return folder, row["path"]
    if row["kind"] == "model" and rest:
        return KINDS["model"], f"exports/{folder}/"
    return KINDS[row["kind"]], row["path"]


COMPLETES = "the same command writes the report and finishes the clean-up"


@contextmanager
def finish_run_record(context: RunContext, manifest: dict[str, Any], begin: float) -> Iterator[None]:
    """Write manifest and report whatever happens in the block, which began at `begin` on the monotonic clock.

    Raises StageError or ConvertError for what the user can fix, `Stopped` when a signal ended the run; errors of the
    machine (disk, memory, permissions) are StageErrors too.
    """
    before = float(manifest["seconds"])
    try:
        with _user_errors(context):
            yield
    except BaseException as error:
        expected = isinstance(error, (StageError, ConvertError))
        text = str(error) if expected else f"{type(error).__name__}: {error}"
        manifest |= {"status": "stopped" if isinstance(error, Stopped) else "failed", "error": text}
        try:
            _write_final_record(context, manifest, before + time.monotonic() - begin)
        except StageError as second:
            context.progress(f"manifest and report could not be updated: {second}")
        except BaseException as second:
            if not _interrupted_twice(context, second):
                raise
            context.progress(f"Stopped at once, without a report; write it with: pivotune report {context.folder}")
        raise
    try:
        manifest["seconds"] = round(before + time.monotonic() - begin, 3)
        with as_stage_error():
            context.metrics.close()
            finish(context.folder, manifest)
    except StageError as error:
        text = f"everything is trained and exported, but manifest or report cannot be written: {error}"
        raise StageError(f"{text}; {COMPLETES}") from error
    except BaseException as error:
        if not _interrupted_twice(context, error):
            raise
        text = f"Stopped: everything is trained and exported, only the report is missing; {COMPLETES}"
        raise Stopped(text, context.checkpointer.request.number) from error


@contextmanager
def _user_errors(context: RunContext) -> Iterator[None]:
    try:
        with as_stage_error():
            yield
    except BaseException as error:
        if _interrupted_twice(context, error):
            raise _at_once(context) from error
        if not isinstance(error, (StageError, ConvertError)):
            raise
        gone = lost_folder_message(context.folder)
        if gone is not None:
            raise StageError(gone) from error
        raise


def _interrupted_twice(context: RunContext, error: BaseException) -> bool:
    """Whether a second Ctrl-C ended the block; a library may have turned it into an error of its own."""
    return isinstance(error, KeyboardInterrupt) or (context.checkpointer.request.twice and isinstance(error, Exception))


def _at_once(context: RunContext) -> Stopped:
    text = f"Stopped at once; the same command resumes the run from the last checkpoint in {context.folder}"
    return Stopped(text, context.checkpointer.request.number)


def _write_final_record(context: RunContext, manifest: dict[str, Any], seconds: float) -> None:
    """Write manifest and report. Raises StageError when the disk is full or read-only."""
    manifest["seconds"] = round(seconds, 3)
    with as_stage_error():
        context.metrics.close()
        write_report_of(context, manifest)


def write_report_of(context: RunContext, manifest: dict[str, Any]) -> None:
    """Write the manifest, and the report made from it."""
    write_json(context.folder / "manifest.json", json_safe(manifest))
    write_report(context.folder)


def write_report(folder: Path) -> None:
    """Write the report of a run folder. Matplotlib and the template engine are imported for it, after training."""
    from ..report import page

    page.write_report(folder)
