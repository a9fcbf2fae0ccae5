"""Versions of what Pivotune stands on, for manifests and bug reports. Imports none of the packages."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

DECISIVE = ("torch", "diffusers", "transformers", "peft", "safetensors")  # what may change the bytes of a run
OTHERS = ("accelerate", "tokenizers", "huggingface-hub", "numpy", "pillow", "filelock", "psutil", "click", "jsonschema",
          "tomli")  # fmt: skip
OPTIONAL = (
    "bitsandbytes", "prodigyopt", "prodigy-plus-schedule-free", "pytorch-optimizer", "tensorboard",
)  # fmt: skip


def package_version(package: str) -> str | None:
    """A package's installed version, or None where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def version_lines() -> list[str]:
    """`name version` for Python, the system and every package that matters; optional ones where they are installed."""
    found = {package: package_version(package) for package in (*DECISIVE, *OTHERS, *OPTIONAL)}
    shown = {package: text or "not installed" for package, text in found.items() if text or package not in OPTIONAL}
    rows = {"python": platform.python_version(), "platform": platform.platform(), **shown}
    width = max(map(len, rows))
    return [f"{name:{width}}  {text}" for name, text in rows.items()]
