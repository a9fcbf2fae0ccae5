"""The end of a run, once its exports are verified: the report, then the clean-up, and `finished` last.

A run that is killed, or meets a full disk, in between has the status `finishing`: the same command completes its end
and trains nothing again.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import StageError
from ..export.artefacts import require_artefacts
from ..export.finished import remove_finished
from ..export.last_good import remove_last_good
from ..report.page import write_report
from .folder import write_json
from .metrics import finite

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
    write_json(folder / "manifest.json", finite(manifest))
