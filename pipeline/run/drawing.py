"""Draws images with the pipeline: its scheduler and negative prompt, and how long images before training would take."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from inspect import signature
from typing import Any

import torch
from PIL import Image

from ..embeddings.chunks import even_chunks
from ..errors import StageError
from ..models.load import Model
from ..recipe.model import Recipe
from ..recipe.options import TrainOptions

SHARE = 10  # sample images before training take at most the training's time divided by this


def too_slow_before(model: Model, recipe: Recipe) -> bool:
    """Whether `before = "auto"` leaves out the images before training: they would take more than a tenth of its time.

    Both are counted in pixels that the denoiser is called with, twice for an image with classifier-free guidance; a
    training step with its backward pass counts as three calls.
    """
    samples = recipe.samples
    calls = 2 if samples.guidance > 1 and not getattr(model.denoiser.config, "guidance_embeds", False) else 1
    pixels = (samples.size or model.resolution) ** 2
    drawing = len(samples.prompts) * samples.count * samples.steps * calls * pixels
    training = sum(
        3 * options.steps * options.gradient_accumulation * options.batch_size
        * (options.resolution or model.resolution) ** 2
        for _, options in recipe.stages_with(TrainOptions)
    )  # fmt: skip
    return drawing * SHARE > training


# The classes of diffusers and the changes to the model's own configuration, by the names of `samples.scheduler`.
SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {
    "ddim": ("DDIMScheduler", {}),
    "ddpm": ("DDPMScheduler", {}),
    "dpm++-2m": ("DPMSolverMultistepScheduler", {"use_karras_sigmas": False}),
    "dpm++-2m-karras": ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
    "euler": ("EulerDiscreteScheduler", {"use_karras_sigmas": False}),
    "euler-a": ("EulerAncestralDiscreteScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {"use_karras_sigmas": False}),
    "unipc": ("UniPCMultistepScheduler", {"use_karras_sigmas": False}),
}


@contextmanager
def scheduled(model: Model, name: str | None) -> Iterator[None]:
    """Within it the pipeline has the scheduler of this name, with the noise schedule and prediction of its own.

    StageError for a model that is not a diffusion model.
    """
    if name is None:
        yield
        return
    import diffusers

    own = model.pipe.scheduler
    if model.family.objective != "diffusion" or type(own).__name__.startswith("FlowMatch"):
        raise StageError(f"samples.scheduler = {name!r} is for diffusion models; remove it for {model.family.title}")
    kind, changes = SCHEDULERS[name]
    model.pipe.scheduler = getattr(diffusers, kind).from_config(own.config, **changes)
    try:
        yield
    finally:
        model.pipe.scheduler = own


def require_negative(model: Model) -> None:
    """StageError for a pipeline that takes no negative prompt."""
    names = model.pipe.blocks.input_names if model.family.modular else signature(model.pipe.__call__).parameters
    if "negative_prompt" not in names:
        raise StageError(f"samples.negative: {type(model.pipe).__name__} takes no negative prompt; remove it")


def draw_images(
    model: Model, prompts: list[str], steps: int, guidance: float, size: int, generators: list[torch.Generator],
    negative: str | None = None,
) -> list[Image.Image]:  # fmt: skip
    """Square images by the pipeline itself, with the arguments that its family is drawn with.

    StageError for a family whose images are drawn by a decoder, where there is none.
    """
    if not model.draws:
        raise StageError(f"{model.family.title} draws images only with its decoder; set model.decoder")
    side = max(1, size // model.size_multiple) * model.size_multiple
    family = model.family
    options = {family.guidance_argument: guidance, **family.draw_options}
    if family.modular:
        model.pipe.guider.guidance_scale = options.pop(family.guidance_argument)
    else:
        model.pipe.default_sample_size = side / model.pixels_per_latent  # HiDream scales every size to its area
    if negative is not None:
        require_negative(model)
        options["negative_prompt"] = negative
    if "negative_prompt" in options:
        options["negative_prompt"] = [options["negative_prompt"]] * len(prompts)
    with even_chunks(model.pipe, [*prompts, *options.get("negative_prompt", ())]):
        drawn = model.pipe(
            prompt=prompts, num_inference_steps=steps, height=side, width=side, generator=generators,
            output_type="pil", **options,
        )  # fmt: skip
    if model.decoder is not None:
        drawn = model.decoder(
            drawn.image_embeddings, prompt_embeds=drawn.prompt_embeds, prompt_embeds_pooled=drawn.prompt_embeds_pooled,
            generator=generators, output_type="pil",
        )  # fmt: skip
    images: list[Image.Image] = drawn.images if hasattr(drawn, "images") else [video[0] for video in drawn.frames]
    return images
