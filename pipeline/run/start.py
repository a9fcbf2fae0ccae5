"""What a killed process, or one that a full disk stopped, has left half written in a run's folder."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import StageError
from ..lock import folder_lock, has_our_lock, is_locked
from ..records import manifest_or_none, unreadable_reason
from ..run_folder import require_own_files
from .checkpoints import FOLDER
from .diff import ROUNDING, Difference, difference_lines, input_differences

_STEP = r"\.stage-\d+-step-\d+"
# For each folder of a run: what is written there under such a name until it is whole, or has one while it is deleted.
# `.tmp` and six characters is the file that safetensors writes before it renames it; `.report.html.<process>` a report.
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
    """Take away what dead processes have left in a run's folder; what is called otherwise stays.

    Only for the process that holds the folder's lock. A report may be written without it (`pivotune report`): what a
    living process writes stays too. What cannot be taken away is left to the user.
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
    """The older one back in its place, where a kill came between it and the newer one."""
    old = run / ".last-good.old"
    if old.is_dir() and not (run / "last-good").exists():
        old.rename(run / "last-good")


def _is_at_work(path: Path) -> bool:
    """Whether a report's writer lives still. Windows refuses to delete a file that is being written."""
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


MOST = 12  # differences that are listed
# What a run has written before its first manifest: a process killed so early leaves nothing that counts.
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
    """The run's folder and, where a process before left it unfinished, the manifest it left.

    `passed` are unfinished runs of this name with a checkpoint that are not resumed: their inputs differ, say.
    """

    folder: Path
    left: Mapping[str, Any] | None = None
    passed: tuple[Path, ...] = ()


def refuse_foreign(out: Path | None) -> None:
    """StageError when the folder asked for holds a finished run, or files that are no run's.

    Said before minutes are spent on loading a model.
    """
    if out is None or not out.is_dir():
        return
    left = manifest_or_none(out)
    if left is not None and left["status"] == "finished":
        raise StageError(
            f"{out} holds a finished run, which is never written over: choose another --out; to go on from its end "
            f"with more steps, raise them and add --from-checkpoint {out}"
        )
    foreign = left is None and not _is_free(out)
    if not foreign or os.path.lexists(out / "manifest.json"):  # a user's own folder may be large, and have links
        require_own_files(out)  # before pre-flight tries its folders
    if foreign:
        raise StageError(
            f"{out} holds files already, and no run that could go on{unreadable_reason(out)}; choose another --out"
        )


def _is_free(folder: Path) -> bool:
    """Whether a folder is empty, or holds but what a run leaves that was killed before its first manifest. That has a
    lock, which names a process; without one the files are somebody's own."""
    names = {path.name for path in folder.iterdir()}
    return not names or (names <= BEGUN and has_our_lock(folder))


def choose_start(
    name: str, out: Path | None, inputs: Mapping[str, Any], *, fresh: bool, source: Mapping[str, Any] | None = None
) -> Start:
    """The unfinished run of the same inputs that is to go on, else a new folder (not yet made).

    Without `out` it is `runs/<name>`, or `runs/<name>-2` and so on where that is taken. With a `source` (as its
    manifest has it) only a run that began with that one goes on, wherever it lay then. Raises StageError when the
    unfinished run in `out` was begun with other inputs, and names what differs.
    """

    def may_go_on(left: Mapping[str, Any]) -> bool:
        return not fresh and (source is None or _content(source) == _content(left.get("source")))

    if out is not None:
        refuse_foreign(out)
        left = manifest_or_none(out)
        if left is None:
            return Start(out.absolute())
        if not may_go_on(left):
            began = "is to begin anew" if fresh else "begins with a checkpoint that the other did not begin with"
            raise StageError(f"{out} holds an unfinished run, and this one {began}: choose another --out")
        _refuse_changed(out, _differences(left, inputs))
        return Start(out.absolute(), left)
    passed: list[Path] = []
    runs, number = Path("runs").absolute(), 1
    folder = runs / name
    while folder.exists() or folder.is_symlink():
        left = manifest_or_none(folder)
        if left is None or (left["status"] != "finished" and may_go_on(left)):
            if left is not None and not is_locked(folder) and not _differences(left, inputs):
                return Start(folder, left)
            if any((folder / "checkpoints").glob("*.safetensors")):
                passed.append(folder)
        number += 1
        folder = runs / f"{name}-{number}"
    return Start(folder, None, tuple(passed))


def _content(source: Mapping[str, Any] | None) -> tuple[Any, ...] | None:
    return None if source is None else (source["sha256"], source["whole"])


def begin_folder(
    name: str, out: Path | None, inputs: Mapping[str, Any], *, fresh: bool, source: Mapping[str, Any] | None = None
) -> Start:
    """Choose where to begin (see `choose_start`) and make the folder. StageError when nothing can be written there."""
    while True:
        start = choose_start(name, out, inputs, fresh=fresh, source=source)
        try:
            start.folder.mkdir(parents=True, exist_ok=out is not None or start.left is not None)
            require_own_files(start.folder)
            probe = start.folder / ".probe"
            probe.unlink(missing_ok=True)  # never written in place: it may be a second name of another file
            try:
                with probe.open("xb") as file:
                    file.write(b"x")
            finally:
                probe.unlink(missing_ok=True)  # on a full disk too
        except FileExistsError:
            if out is not None or start.left is not None:
                raise StageError(f"the run's folder cannot be made: {start.folder} is a file") from None
            continue  # another process has taken the name between the look and the making
        except OSError as error:
            raise StageError(f"the run's folder cannot be made: {error}") from error
        return start


@contextmanager
def run_folder_lock(start: Start) -> Iterator[None]:
    """Hold the lock of the run's folder, and clear it of what dead processes left half written.

    StageError when another process has it, or had it since `start` was chosen.
    """
    with folder_lock(start.folder):
        require_own_files(start.folder)
        if manifest_or_none(start.folder) != start.left:
            raise StageError(f"{start.folder}: another process has run in this folder meanwhile; say the command again")
        remove_leftovers(start.folder)
        yield


def say_start(start: Start, checkpointed: tuple[int, int] | None, progress: Callable[[str], None]) -> None:
    """Say which unfinished run is resumed and from where, or that there are others that are not."""
    if start.passed:
        more = f" and {len(start.passed) - 1} more" if len(start.passed) > 1 else ""
        newest = start.passed[-1]
        progress(f"warning: not resuming the unfinished run {newest}{more}: --out {newest} shows why")
    if start.left is None:
        return
    stage, step = checkpointed or (0, 0)
    where = f"after step {step} of stage {stage + 1}"
    if checkpointed is None:
        whole = "whole " if any((start.folder / "checkpoints").glob("*.safetensors")) else ""  # those there are damaged
        where = f"from its beginning: there is no {whole}checkpoint"
    progress(f"resuming {start.folder}, {where}")


def _differences(left: Mapping[str, Any], inputs: Mapping[str, Any]) -> list[Difference]:
    """What keeps an unfinished run from going on; another number of processes does not."""
    return [one for one in input_differences(left, inputs) if not one.within(ROUNDING)]


def _refuse_changed(out: Path, differences: Sequence[Difference]) -> None:
    if differences:
        listed = "\n  ".join(difference_lines(differences, MOST))
        raise StageError(
            f"{out}: an unfinished run of other inputs; choose another --out, or take what fits into a new run with "
            f"--from-checkpoint {out}. What differs:\n  {listed}"
        )
