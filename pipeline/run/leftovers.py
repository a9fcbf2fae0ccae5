"""What a killed process, or one that a full disk stopped, has left half written in a run's folder."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from .checkpoint import FOLDER

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


def sweep_run(run: Path) -> None:
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
