"""The stages a recipe can name. A stage is a plain function; its keyword arguments are its keys in the recipe."""

from __future__ import annotations

from collections.abc import Callable

from ...converters.embedding import Contents
from .export import export
from .inject import inject
from .rescale import rescale
from .tokenize import tokenize
from .train import train

STAGES: dict[str, Callable[..., Contents]] = {
    "tokenize": tokenize,
    "inject": inject,
    "train": train,
    "rescale": rescale,
    "export": export,
}
