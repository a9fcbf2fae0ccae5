"""What the libraries raise at a model they cannot read, and the one line that people are told instead."""

from __future__ import annotations

from pickle import UnpicklingError

from safetensors import SafetensorError

from ..errors import StageError
from ..recipe.model import ModelSpec

READ_ERRORS = (OSError, ValueError, RuntimeError, LookupError, EOFError, UnpicklingError, SafetensorError)


def unreadable(spec: ModelSpec, why: Exception | str, hint: str = "") -> StageError:
    """The error of a model that cannot be loaded: which one, why, and what helps."""
    from .full_memory import out_of_memory  # which needs torch; whoever looks for a model does not

    full = out_of_memory(why) if isinstance(why, Exception) else None
    return StageError(full or f"model.base = {spec.base!r} cannot be loaded: {_one_line(why)}{hint}")


def _one_line(why: Exception | str) -> str:
    text = str(why).strip() or type(why).__name__
    return text.splitlines()[0].rstrip(". ")
