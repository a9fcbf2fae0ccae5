"""A run folder that an earlier process left, with nothing but its manifest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

INPUTS: dict[str, Any] = {
    "recipe": {"seed": 1, "stage": [{"kind": "train", "steps": 100}]},
    "model": {"sha256": {"unet": "aa"}, "path": "/here"},
    "data": {"files": {"a.png": "bb"}},
    "environment": {"torch": "2.13", "platform": "Linux-1"},
}


def leave(folder: Path, status: str, **changes: Any) -> Path:
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text(json.dumps({"status": status, **INPUTS, **changes}), "utf-8")
    return folder
