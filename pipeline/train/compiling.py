"""torch.compile for the steps of a stage, where a recipe asks for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ..errors import StageError


@contextmanager
def compiled(denoiser: Any, wanted: bool) -> Iterator[None]:
    """Within it the denoiser's calls are compiled, which takes a while at the first and changes nothing but time.

    The module stays the same object with the same weights. Raises StageError where torch cannot compile it here.
    """
    if not wanted:
        yield
        return
    from torch._dynamo.exc import TorchDynamoException

    denoiser.compile()
    try:
        yield
    except TorchDynamoException as error:
        from torch._inductor.runtime.cache_dir_utils import cache_dir

        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        way_out = f"leave it out, or if it is what an earlier kill left half written, empty {cache_dir()}"
        raise StageError(f"compile = true: torch cannot compile the model here ({first}); {way_out}") from error
    finally:
        denoiser._compiled_call_impl = None  # what `compile` sets; torch has no word for taking it back
