"""The folder of a run: which one, its lock, and the clean-up of what interrupted processes left."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import StageError
from ..lock import folder_lock, has_our_lock, is_locked
from ..records import manifest_or_none, unreadable_reason
from ..run_folder import require_own_files
from .checkpoints import FOLDER

if TYPE_CHECKING:  # few runs find an unfinished one
    from .diff import Difference

_STEP = r"\.stage-\d+-step-\d+"
# Names of files that are being written or deleted, by folder of a run. `.tmp` and six characters is a file that
# safetensors writes before it renames it; `.report.html.<process>` is a report.
_NAMES = {
    "": re.compile(
        r"\.report\.html\.\d+|\.(manifest\.json|recipe\.toml|metrics\.jsonl)\.part|\.probe|\.finished\.old|\.last-good\.(part|old)"
    ),
    FOLDER: re.compile(rf"{_STEP}\.safetensors\.part|\.tmp[A-Za-z0-9]{{6}}"),
    "saves": re.compile(rf"{_STEP}\.(part|old)"),
}
# Folders of files that the converters write.
_CONVERTED, _PART = ("exports", "finished", "last-good", "latents"), re.compile(r"\.[0-9a-f]{16}\.part")


def remove_leftovers(run: Path) -> None:
    """Delete what interrupted processes left in a run folder; files with other names are kept.

    Only for the process that holds the folder's lock. A report may be written without it (`pivotune report`): files of
    a running process are kept too. What cannot be deleted is left.
    """
    with suppress(OSError):
        _last_good(run)
    for left in list(_found(run)):
        with suppress(OSError):
            shutil.rmtree(left) if left.is_dir() and not left.is_symlink() else left.unlink()


def _found(run: Path) -> Iterator[Path]:
    for folder, names in _NAMES.items():
        yield from (path for path in (run / folder).glob(".*") if names.fullmatch(path.name) and not _is_at_work(path))
    for folder in _CONVERTED:
        yield from (path for path in (run / folder).rglob(".*.part") if _PART.fullmatch(path.name))


def _last_good(run: Path) -> None:
    """Restore the older `last-good/` where a kill came before the newer one got its name."""
    old = run / ".last-good.old"
    if old.is_dir() and not (run / "last-good").exists():
        old.rename(run / "last-good")


def _is_at_work(path: Path) -> bool:
    """Whether the process that writes a report is still running. Windows refuses to delete a file that is open."""
    number = path.name.rpartition(".")[2]
    if os.name == "nt" or not number.isdecimal() or int(number) == os.getpid():
        return False
    try:
        os.kill(int(number), 0)
    except PermissionError:
        return True  # another user's
    except (OSError, OverflowError):
        return False
    return True


LISTED = 12  # differences in a message
# What a run writes before its first manifest; nothing is lost with a process that was killed so early.
BEGUN = {
    ".lock",
    ".probe",
    ".manifest.json.part",
    "metrics.jsonl",
    "recipe.toml",
    ".recipe.toml.part",
    ".metrics.jsonl.part",
}


@dataclass(frozen=True)
class Start:
    """The run's folder and the manifest of the unfinished run in it, if there is one to resume.

    `skipped` are unfinished runs of this name with a checkpoint that are not resumed, for example because their inputs
    differ.
    """

    folder: Path
    unfinished: Mapping[str, Any] | None = None
    skipped: tuple[Path, ...] = ()


def require_usable_folder(out: Path | None) -> None:
    """StageError when the output folder contains a finished run, or files that are not of a run.

    Called before the model is loaded, which may take minutes.
    """
    if out is None or not out.is_dir():
        return
    unfinished = manifest_or_none(out)
    if unfinished is not None and unfinished["status"] == "finished":
        raise StageError(
            f"{out} contains a finished run, which is not overwritten; choose another --out. To train for more steps, "
            f"increase steps and add --from-checkpoint {out}"
        )
    foreign = unfinished is None and not _is_free(out)
    if not foreign or os.path.lexists(out / "manifest.json"):  # a user's own folder may be large and contain links
        require_own_files(out)  # before pre-flight writes to it
    if foreign:
        raise StageError(
            f"{out} contains files, but no run that can be resumed{unreadable_reason(out)}; choose another --out"
        )


def _is_free(folder: Path) -> bool:
    """Whether a folder is empty, or contains only files of a run that was killed before its first manifest. Such a run
    has left a lock; without one the files are the user's own."""
    names = {path.name for path in folder.iterdir()}
    return not names or (names <= BEGUN and has_our_lock(folder))


def choose_start(
    name: str, out: Path | None, inputs: Mapping[str, Any], *, fresh: bool, source: Mapping[str, Any] | None = None
) -> Start:
    """The unfinished run of the same inputs to resume, else a new folder (not yet created).

    Without `out` it is `runs/<name>`, `runs/<name>-2` and so on. With a `source` (as the manifest has it) only a run
    that started from that checkpoint is resumed, wherever its file is. Raises StageError when the unfinished run in
    `out` has other inputs, and names the differences.
    """

    def may_resume(manifest: Mapping[str, Any]) -> bool:
        return not fresh and (source is None or _content(source) == _content(manifest.get("source")))

    if out is not None:
        require_usable_folder(out)
        unfinished = manifest_or_none(out)
        if unfinished is None:
            return Start(out.absolute())
        if not may_resume(unfinished):
            why = "--fresh starts over" if fresh else "it did not start from this checkpoint"
            raise StageError(f"{out} contains an unfinished run, and {why}; choose another --out")
        _require_same_inputs(out, _differences(unfinished, inputs))
        return Start(out.absolute(), unfinished)
    skipped: list[Path] = []
    runs, number = Path("runs").absolute(), 1
    folder = runs / name
    while folder.exists() or folder.is_symlink():
        unfinished = manifest_or_none(folder)
        if unfinished is None or (unfinished["status"] != "finished" and may_resume(unfinished)):
            if unfinished is not None and not is_locked(folder) and not _differences(unfinished, inputs):
                return Start(folder, unfinished)
            if any((folder / "checkpoints").glob("*.safetensors")):
                skipped.append(folder)
        number += 1
        folder = runs / f"{name}-{number}"
    return Start(folder, None, tuple(skipped))


def _content(source: Mapping[str, Any] | None) -> tuple[Any, ...] | None:
    return None if source is None else (source["sha256"], source["continues"])


def create_run_folder(
    name: str, out: Path | None, inputs: Mapping[str, Any], *, fresh: bool, source: Mapping[str, Any] | None = None
) -> Start:
    """Choose the folder (see `choose_start`) and create it. StageError when it is not writable."""
    while True:
        start = choose_start(name, out, inputs, fresh=fresh, source=source)
        try:
            start.folder.mkdir(parents=True, exist_ok=out is not None or start.unfinished is not None)
            require_own_files(start.folder)
            probe = start.folder / ".probe"
            probe.unlink(missing_ok=True)  # it may be a second name of another file, which must not be written
            try:
                with probe.open("xb") as file:
                    file.write(b"x")
            finally:
                probe.unlink(missing_ok=True)  # on a full disk too
        except FileExistsError:
            if out is not None or start.unfinished is not None:
                raise StageError(
                    f"{start.folder}: is a file; the run folder cannot be created; choose another --out"
                ) from None
            continue  # another process has created this folder in between
        except OSError as error:
            raise StageError(f"the run folder cannot be created: {error}") from error
        return start


@contextmanager
def run_folder_lock(start: Start) -> Iterator[None]:
    """Hold the lock of the run folder, and delete what interrupted processes left in it.

    StageError when another process has the lock, or has used the folder since `start` was chosen.
    """
    with folder_lock(start.folder):
        require_own_files(start.folder)
        if manifest_or_none(start.folder) != start.unfinished:
            raise StageError(
                f"{start.folder}: another process has used this folder in the meantime; run the command again"
            )
        remove_leftovers(start.folder)
        yield


def report_start(start: Start, checkpointed: tuple[int, int] | None, progress: Callable[[str], None]) -> None:
    """Print which unfinished run is resumed and from where, or that others are not."""
    if start.skipped:
        more = f" and {len(start.skipped) - 1} more" if len(start.skipped) > 1 else ""
        newest = start.skipped[-1]
        progress(f"warning: not resuming the unfinished run {newest}{more}: --out {newest} shows why")
    if start.unfinished is None:
        return
    stage, step = checkpointed or (0, 0)
    where = f"after step {step} of stage {stage + 1}"
    if checkpointed is None:
        usable = "usable " if any((start.folder / "checkpoints").glob("*.safetensors")) else ""
        where = f"from step 1: it has no {usable}checkpoint"
    progress(f"resuming {start.folder}, {where}")


def _differences(manifest: Mapping[str, Any], inputs: Mapping[str, Any]) -> list[Difference]:
    """Differences that prevent resuming; another number of processes does not."""
    from .diff import ROUNDING, input_differences

    return [one for one in input_differences(manifest, inputs) if not one.within(ROUNDING)]


def _require_same_inputs(out: Path, differences: Sequence[Difference]) -> None:
    if differences:
        from .diff import difference_lines

        listed = "\n  ".join(difference_lines(differences, LISTED))
        raise StageError(
            f"{out}: contains an unfinished run with other inputs; choose another --out, or load what fits into a new "
            f"run with --from-checkpoint {out}. Differences:\n  {listed}"
        )
