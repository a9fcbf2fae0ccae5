"""The stages a recipe can name. A stage is a plain function of the run, the contents and its options."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ...converters.embedding import Contents
from ..run.context import Run
from .export import export
from .inject import inject
from .rescale import rescale
from .tokenize import tokenize
from .train import train

STAGES: dict[str, Callable[[Run, Contents, Any], Contents]] = {
    "tokenize": tokenize,
    "inject": inject,
    "train": train,
    "rescale": rescale,
    "export": export,
}
