"""The stages that a recipe can name: plain functions of context, state, contents and their options.

Each is a module of this folder with a function of the same name.
"""

from __future__ import annotations

from importlib import import_module

from ..recipe.options import STAGE_OPTIONS
from ..run.context import StageFunction

STAGES: dict[str, StageFunction] = {kind: getattr(import_module(f".{kind}", __name__), kind) for kind in STAGE_OPTIONS}
