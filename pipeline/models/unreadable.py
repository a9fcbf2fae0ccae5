"""What the libraries raise at a model they cannot read, and the one line that people are told instead."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ..errors import RecipeError, StageError
from ..recipe.model import ModelSpec


@contextmanager
def reading(told: Callable[[Exception], StageError]) -> Iterator[None]:
    """Whatever a library raises while a model is read or built becomes one line, which `told` makes of it."""
    try:
        yield
    except (StageError, RecipeError):
        raise
    except Exception as error:
        raise told(error) from error
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # what a library in Rust raises for its own faults
            raise
        raise told(ValueError(one_line(error))) from error


def unreadable(spec: ModelSpec, why: Exception | str, hint: str = "") -> StageError:
    """The error of a model that cannot be loaded: which one, why, and what helps."""
    from .full_memory import out_of_memory  # which needs torch; whoever looks for a model does not

    full = out_of_memory(why) if isinstance(why, Exception) else None
    return StageError(full or f"model.base = {spec.base!r} cannot be loaded: {one_line(why)}{hint}")


def one_line(why: BaseException | str) -> str:
    """The first line of what a library says; never its advice to run the code in a file."""
    text = str(why).strip() or type(why).__name__
    if "weights_only" in text:
        return "its pickle holds other things than tensors, which are never loaded"
    if isinstance(why, (TypeError, AttributeError, KeyError, AssertionError, ZeroDivisionError, RecursionError)):
        text = f"its files do not fit together ({type(why).__name__}: {text})"
    return text.splitlines()[0][:500].rstrip(". ")
