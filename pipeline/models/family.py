"""Which family a model is of: the pipeline's class and the width of the text its denoiser attends to tell."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ...converters.families import Family, families
from ..errors import StageError
from ..recipe.model import ModelSpec

MICRO = "micro"


def choose_family(spec: ModelSpec, kind: Any, width: Any) -> Family:
    """The family of a pipeline class `kind` with this cross-attention width.

    A family that the recipe names must have the class; of any width, since a small model is one of its family too.
    Raises StageError when no family fits, when several do, and when the named one does not.
    """
    fitting = check_kind(spec, kind)
    if spec.family is not None:
        return _named(spec, kind, width, fitting)
    if spec.base == MICRO:
        return fitting[0]
    exact = [family for family in fitting if family.cross_attention == width]
    if len(exact) != 1:
        names = ", ".join(family.name for family in fitting)
        raise StageError(f"{spec.base} is a {kind} of width {width}: say model.family (possible: {names})")
    return exact[0]


def width_of(kind: Any, config_of: Callable[[str], Mapping[str, Any]]) -> Any:
    """Width of the text that a pipeline's denoiser attends to; `config_of` gives the config of one of its models.

    None where the class is of no family, or the config does not say.
    """
    fitting = [family for family in families().values() if family.pipeline == kind]
    return config_of(fitting[0].denoiser_module).get(fitting[0].denoiser_width) if fitting else None


def check_kind(spec: ModelSpec, kind: Any) -> list[Family]:
    """The families of this pipeline class; StageError when there is none."""
    fitting = [family for family in families().values() if family.pipeline == kind]
    if not fitting:
        known = ", ".join(family.title for family in families().values())
        raise StageError(f"model.base = {spec.base!r} is a {kind}; what can be trained: {known}")
    return fitting


def _named(spec: ModelSpec, kind: Any, width: Any, fitting: list[Family]) -> Family:
    named = families().get(spec.family or "")
    if named is None:
        raise StageError(f"model.family = {spec.family!r} is none; known: {', '.join(families())}")
    if named not in fitting:
        raise StageError(f"model.family = {spec.family!r}, but {spec.base} is a {kind}")
    others = [family for family in fitting if family.cross_attention == width and family is not named]
    if others:
        raise StageError(f"model.family = {spec.family!r}, but {spec.base} has the width of {others[0].name} ({width})")
    return named
