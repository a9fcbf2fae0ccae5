"""Files of a run's folder."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from ...converters.disk import replace


def write_json(path: Path, value: Any) -> None:
    """Write JSON for people and programs: the file is either the old one or the whole new one."""
    temporary = path.with_name(f".{path.name}.part")
    # a path that is not UTF-8 has lone surrogates: escaped, they are JSON
    with temporary.open("w", encoding="utf-8", errors="backslashreplace", newline="\n") as file:
        json.dump(value, file, indent=2, ensure_ascii=False, allow_nan=False)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    replace(temporary, path)
