"""A torchvision that cannot be imported (often built for another torch) counts as absent, with its reason kept.

transformers and diffusers import it whenever it is installed, and fail with it, although most models need none of it.
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.util import find_spec

NAME = "torchvision"
_reason = ""


def hide_broken_torchvision() -> None:
    """Import torchvision if it is installed; where that fails it is as if it were not, for the rest of the process.

    To be called before transformers or diffusers is imported.
    """
    global _reason
    if sys.modules.get(NAME, "") is None or find_spec(NAME) is None:
        return
    try:
        import_module(NAME)
    except Exception as error:  # noqa: BLE001 (a build for another torch raises RuntimeError, among others)
        _reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        for name in [name for name in sys.modules if name.startswith(f"{NAME}.")]:
            del sys.modules[name]
        sys.modules[NAME] = None  # type: ignore[assignment]  # `find_spec` and `import` then say that there is none


def hidden_because() -> str:
    """Why torchvision cannot be imported; empty if it can, or is not installed."""
    return _reason if sys.modules.get(NAME, "") is None else ""
