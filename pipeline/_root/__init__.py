"""Pivotune trains embeddings for diffusion models and converts embedding files between programs.

Training, from a recipe (a TOML file, or the name of a shipped one):

    import pivotune

    result = pivotune.run("quickstart")
    print(result.summary, result.folder)

Using what was trained, in any diffusers pipeline of a supported family:

    loaded = pivotune.load(pipe, result.folder)      # or an embedding of any program, or a LoRA with embeddings
    pipe(f"a photo of {loaded.tokens[0]} on a beach")
    loaded.unload()                                  # the pipeline is as it was before

Files of other programs:

    pivotune.inspect("embedding.pt")["programs"]     # which programs load it, and what to type there
    pivotune.retarget("embedding.pt", "out", ["comfyui", "diffusers"])
    pivotune.unbundle("lora.safetensors", "apart", ["comfyui"])
    pivotune.bundle("lora.safetensors", ["cat.safetensors"], "both.safetensors")

Errors are ConvertError (files), RecipeError (recipes) and StageError (models and runs): a line that says what is wrong,
where, and what to do. Importing pivotune imports no other package; torch is imported by `run` and `load`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pivotune.converters.errors import ConvertError
    from pivotune.converters.library import bundle, inspect, retarget, unbundle
    from pivotune.pipeline.cli.python import check, run
    from pivotune.pipeline.errors import RecipeError, StageError
    from pivotune.pipeline.run.use import load

__version__ = "0.1.0"
__all__ = [
    "ConvertError", "RecipeError", "StageError", "bundle", "check", "inspect", "load", "retarget", "run", "unbundle",
]  # fmt: skip

_MODULES = {
    "pivotune.converters.errors": ("ConvertError",),
    "pivotune.converters.library": ("bundle", "inspect", "retarget", "unbundle"),
    "pivotune.pipeline.errors": ("RecipeError", "StageError"),
    "pivotune.pipeline.cli.python": ("check", "run"),
    "pivotune.pipeline.run.use": ("load",),
}


def __getattr__(name: str) -> Any:
    """Import a function when it is first used."""
    for module, names in _MODULES.items():
        if name in names:
            return getattr(import_module(module), name)
    raise AttributeError(f"module 'pivotune' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
