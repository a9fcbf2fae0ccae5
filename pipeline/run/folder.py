"""Files of a run's folder."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from ...converters.disk import replace


def write_json(path: Path, value: Any) -> None:
    """Write JSON for people and programs: the file is either the old one or the whole new one."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    # a path that is not UTF-8 has lone surrogates: escaped, they are JSON
    write_whole(path, text.encode("utf-8", "backslashreplace") + b"\n")


def write_whole(path: Path, data: bytes) -> None:
    """Write a file that is either the old one or the whole new one. What was left under its temporary name goes."""
    temporary = path.with_name(f".{path.name}.part")
    temporary.unlink(missing_ok=True)
    with temporary.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    replace(temporary, path)
