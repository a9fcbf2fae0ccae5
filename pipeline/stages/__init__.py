"""The stages that a recipe can name: plain functions of context, state, contents and their options."""

from __future__ import annotations

from ..run.context import StageFunction
from .export import export
from .inject import inject
from .rescale import rescale
from .tokenize import tokenize
from .train import train

STAGES: dict[str, StageFunction] = {
    "tokenize": tokenize,
    "inject": inject,
    "train": train,
    "rescale": rescale,
    "export": export,
}
