"""The parts of a model that a recipe can name: `denoiser`, and the text encoders by their keys."""

from __future__ import annotations

from torch import nn

from ..errors import StageError
from ..models.load import Model

DENOISER = "denoiser"


def part_modules(model: Model) -> dict[str, nn.Module]:
    """Each part's module by its name, the denoiser first."""
    return {DENOISER: model.denoiser, **{encoder.key: encoder.module for encoder in model.encoders}}


def part_module(model: Model, part: str) -> nn.Module:
    """One part's module. StageError lists the parts when there is none of this name."""
    modules = part_modules(model)
    if part not in modules:
        raise StageError(f"this model has no part {part!r}; it has {', '.join(modules)}")
    return modules[part]


def pipe_name(model: Model, part: str) -> str:
    """What the pipeline calls a part: `unet`, `text_encoder_2`, ..."""
    if part == DENOISER:
        return model.family.denoiser_module
    return next(encoder.module_name for encoder in model.encoders if encoder.key == part)


def kohya_prefix(model: Model, part: str) -> str:
    """What kohya's names of this part's LoRA begin with, up to the module's name."""
    prefix = model.family.lora_prefixes[pipe_name(model, part)]
    # transformers has dropped the `text_model` of some CLIP models' module names; files have always had it
    return f"{prefix}_text_model" if part.startswith("clip") else prefix
