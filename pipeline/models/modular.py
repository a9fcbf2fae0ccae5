"""diffusers' modular pipelines: built from loaded parts, without progress bars, guided by a part of their own."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from ...converters.families import Family
from ..errors import StageError
from ..torchvision_problem import NAME, hidden_because


def read_parts(index: dict[str, Any], folder: Path, loaded: dict[str, Any]) -> dict[str, Any]:
    """The parts of a folder without weights (tokenizers, the scheduler), by name, of the classes in its index."""
    parts = {}
    for name, value in index.items():
        if name in loaded or not isinstance(value, list) or value[:1] == [None]:
            continue
        library, kind = value
        made = getattr(importlib.import_module(library), kind, None)
        if made is None:
            raise ValueError(f"{library} has no class {kind} ({name})")
        if not (folder / name).is_dir():
            raise ValueError(f"it has no folder {name}; save the whole pipeline with its save_pretrained")
        parts[name] = made.from_pretrained(str(folder / name), local_files_only=True)
    return parts


def modular_pipeline(family: Family, parts: dict[str, Any]) -> Any:
    """The pipeline of a family with these parts. StageError when it needs others too.

    Its index names no repository: a folder that is saved from it loads from wherever it lies.
    """
    import diffusers

    index: dict[str, Any] = {}
    for name, part in parts.items():
        made = [type(part).__module__.partition(".")[0], type(part).__name__]
        source = {"pretrained_model_name_or_path": None, "subfolder": name, "variant": None, "revision": None}
        index[name] = [*made, {"type_hint": made, **source}]
    kind = getattr(diffusers, family.pipeline)
    pipe = kind(modular_config_dict={"_blocks_class_name": kind.default_blocks_name, **index})
    missing = [name for name in pipe.pretrained_component_names if name not in parts]
    if missing:
        raise StageError(f"it has no {missing[0]}, which the pipeline of {family.title} needs")
    pipe.register_components(**parts)
    return pipe


def hide_progress(blocks: Any) -> None:
    """Switch off the progress bars of a modular pipeline's blocks, whose own switch reaches the outermost only."""
    if hasattr(blocks, "set_progress_bar_config"):
        blocks.set_progress_bar_config(disable=True)
    for block in getattr(blocks, "sub_blocks", {}).values():
        hide_progress(block)


def package_problem(family: Family, config: dict[str, Any] | None) -> str:
    """Why a package that the denoiser with this config needs cannot be used; empty if there is no such package.

    Without a config it is taken to need all packages of its family.
    """
    for key, package in family.packages.items():
        if config is not None and not config.get(key, True):
            continue
        why = hidden_because() if package == NAME else ""
        try:
            if not why:
                importlib.import_module(package)
        except ModuleNotFoundError:
            return f"{family.title} needs {package}, which is not installed; pip install 'pivotune[{family.name}]'"
        except Exception as error:  # noqa: BLE001 (a build for another torch raises many kinds)
            why = (str(error).strip() or type(error).__name__).splitlines()[0]
        if why:
            return f"{family.title} needs {package}, which cannot be imported ({why}); install the one for your torch"
    return ""
