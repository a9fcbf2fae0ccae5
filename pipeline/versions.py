"""Versions of Pivotune's dependencies, for manifests and bug reports. Imports none of them."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

DECISIVE = ("torch", "diffusers", "transformers", "peft", "safetensors")  # these may change the bytes of a run
OTHERS = ("accelerate", "tokenizers", "huggingface-hub", "numpy", "pillow", "filelock", "psutil", "click", "jsonschema",
          "tomli")  # fmt: skip
OPTIONAL = (
    "bitsandbytes", "prodigyopt", "prodigy-plus-schedule-free", "pytorch-optimizer", "tensorboard",
)  # fmt: skip


def package_version(package: str) -> str | None:
    """The installed version of a package, or None."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def version_lines() -> list[str]:
    """Lines `name version` for Python, the platform and the dependencies; optional ones only if installed."""
    found = {package: package_version(package) for package in (*DECISIVE, *OTHERS, *OPTIONAL)}
    shown = {package: text or "not installed" for package, text in found.items() if text or package not in OPTIONAL}
    rows = {"python": platform.python_version(), "platform": platform.platform(), **shown}
    width = max(map(len, rows))
    return [f"{name:{width}}  {text}" for name, text in rows.items()]
