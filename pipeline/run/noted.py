"""However a run ends, its manifest and its report say so, and what the machine refused is one line for people."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ...converters.errors import ConvertError
from ..errors import StageError
from ..export.finished import remove_finished
from ..export.last_good import forget_last_good
from ..report.page import write_report
from .folder import write_json
from .metrics import finite
from .state import Run
from .stopping import Stopped
from .trouble import lost_folder, told


@contextmanager
def noted(run: Run, manifest: dict[str, Any], begin: float) -> Iterator[None]:
    """Leave manifest and report whatever happens in the block, which began at `begin` on the monotonic clock.

    Raises StageError or ConvertError for what the user can mend, `Stopped` when a signal ended the run; an error of
    the machine (disk, memory, rights) is one of these too.
    """
    before = float(manifest["seconds"])
    try:
        with _for_people(run):
            yield
    except BaseException as error:
        people = isinstance(error, (StageError, ConvertError))
        text = str(error) if people else f"{type(error).__name__}: {error}"
        manifest |= {"status": "stopped" if isinstance(error, Stopped) else "failed", "error": text}
        try:
            _leave(run, manifest, before + time.monotonic() - begin)
        except StageError as second:
            run.progress(f"manifest and report are as they were: {second}")
        except BaseException as second:
            if not _impatient(run, second):
                raise
            run.progress(f"stopped at once, before the report was written; pivotune report {run.folder} writes it")
        raise
    try:
        manifest["seconds"] = round(before + time.monotonic() - begin, 3)
        with told():
            run.metrics.close()
            complete(run.folder, manifest)
    except StageError as error:
        raise StageError(
            f"all is trained and exported, but the run's end cannot be written: {error}, then the same command ends it"
        ) from error
    except BaseException as error:
        if not _impatient(run, error):
            raise
        text = "all is trained and exported, but the report is not: the same command writes it"
        raise Stopped(text) from error


@contextmanager
def _for_people(run: Run) -> Iterator[None]:
    try:
        with told():
            yield
    except BaseException as error:
        if _impatient(run, error):
            raise _at_once(run) from error
        if not isinstance(error, (StageError, ConvertError)):
            raise
        gone = lost_folder(run.folder)
        if gone is not None:
            raise StageError(gone) from error
        raise


def _impatient(run: Run, error: BaseException) -> bool:
    """Whether a second Ctrl-C ended what was at work; a library may have made an error of its own of it."""
    return isinstance(error, KeyboardInterrupt) or (run.keeper.asked.twice and isinstance(error, Exception))


def _at_once(run: Run) -> Stopped:
    return Stopped(f"stopped at once; the same command goes on from the last checkpoint in {run.folder}")


def _leave(run: Run, manifest: dict[str, Any], seconds: float) -> None:
    """The last manifest and the report. Raises StageError when the disk takes them not."""
    manifest["seconds"] = round(seconds, 3)
    with told():
        run.metrics.close()
        write_report_of(run, manifest)


def complete(folder: Path, manifest: dict[str, Any]) -> None:
    """The end of a run whose exports hold: the report, then what they replace goes, and `finished` comes last of all.

    The manifest says `ending` before: a run that is stopped meanwhile, by a full disk or a kill, is completed by the
    same command, however often.
    """
    write_json(folder / "manifest.json", finite({**manifest, "status": "ending", "error": None}))
    manifest |= {"status": "finished", "error": None}
    write_report(folder, manifest=manifest)
    forget_last_good(folder)
    if manifest.get("finished", {}).get("removed"):
        remove_finished(folder)
    write_json(folder / "manifest.json", finite(manifest))


def write_report_of(run: Run, manifest: dict[str, Any]) -> None:
    """Write the manifest, and the report made from it."""
    write_json(run.folder / "manifest.json", finite(manifest))
    write_report(run.folder)
