"""The index of a diffusers folder, which lists its parts: of a usual pipeline, or of a modular one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

INDEX = "model_index.json"
MODULAR = "modular_model_index.json"


def index_file(folder: Path) -> Path:
    """The index of a folder; the usual one's path if it has none."""
    modular = folder / MODULAR
    return modular if modular.is_file() and not (folder / INDEX).is_file() else folder / INDEX


def has_index(folder: Path) -> bool:
    """Whether the folder has an index."""
    return index_file(folder).is_file()


def plain_index(index: dict[str, Any]) -> dict[str, Any]:
    """A modular index as a usual one: a part has its library and class, and lies in the folder of its name.

    Modular ones also say in which repository each part is, which is ignored: parts are loaded from the model's own
    folder. ValueError for a part whose files are in a folder of another name.
    """
    plain = dict(index)
    for name, value in index.items():
        if not (isinstance(value, list) and len(value) == 3 and isinstance(value[2], dict)):
            continue
        library, kind, source = value
        if library is None and isinstance(source.get("type_hint"), list):  # saved without this part
            library, kind = (*source["type_hint"], None, None)[:2]
        if source.get("subfolder") not in (None, "", name):
            raise ValueError(
                f"{name} is in the folder {str(source['subfolder'])[:60]!r}, which must be called {name!r}"
            )
        plain[name] = [library, kind]
    return plain
