"""What the drivers of programs' loaders share: stand-ins for what a loader imports, and how answers are printed."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
from unittest.mock import MagicMock

from stand_ins import StandIns


def print_answers(loader: Callable, source: str, folder: str, answer: Callable, nothing: object) -> None:
    """JSON: sample to what `answer` says of it, with what `loader` gives, and the error (then it is `nothing`)."""
    if source:
        sys.path.insert(0, source)
    answers = {}
    with contextlib.redirect_stdout(sys.stderr):
        drive = loader(Path(source))
        for path in sorted(Path(folder).iterdir()):
            error = ""
            try:
                found = answer(drive, path)
            except NotImplementedError:
                continue
            except (Exception, AssertionError) as raised:  # noqa: BLE001 - any exception of a loader is an answer
                found, error = nothing, f"{type(raised).__name__}: {raised}"
            answers[path.stem] = {"found": found, "error": error}
    print(json.dumps(answers))  # noqa: T201


def stand_in(*names: str) -> None:
    """Modules that are there and do nothing."""
    for name in names:
        sys.modules[name] = MagicMock(name=name)
        sys.modules[name].__spec__, sys.modules[name].__path__ = ModuleSpec(name, None), []


def stand_in_for_comfyui():
    """The packages that ComfyUI imports and its loaders do not need; without any, of which it warns, or devices."""
    sys.argv = ["x", "--cpu"]
    sys.meta_path.append(StandIns((
        "torchvision", "torchaudio", "av", "kornia", "spandrel", "torchsde", "scipy", "comfy_kitchen", "comfy_aimdo",
        "sqlalchemy", "alembic", "simpleeval", "blake3", "pydantic", "aiohttp",
    )))  # fmt: skip
    import comfy.options

    comfy.options.enable_args_parsing()


def stand_in_for_management():
    """Of the programs with a copy of ComfyUI in `ldm_patched`: their devices, and no package for attention."""
    packages = ("xformers", "xformers.ops", "torchvision", "torchvision.transforms", "torchsde")
    stand_in("ldm_patched.modules.model_management", *packages)
    import ldm_patched.modules

    management = ldm_patched.modules.model_management = sys.modules["ldm_patched.modules.model_management"]
    for package in ("xformers", "sage_attention", "sage_attention3", "flash_attention"):
        getattr(management, f"{package}_enabled").return_value = False


def patched(patches):
    """How many modules have weights among these."""
    return len({str(key).removesuffix(".bias").removesuffix(".weight") for key in patches})
