"""Training matches sampling: a loop of `encode`, `predict` and scheduler gives the pipeline's latents.

This is the proof of signs, time scaling, packing, masks, templates and guidance of each family.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, ZImagePipeline
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from diffusers.pipelines.z_image.pipeline_z_image import get_default_z_image_sigmas
from projects import BUILD, family_name
from torch import Tensor

from pivotune.converters.families import families
from pivotune.pipeline.models.denoisers import DENOISERS, FluxTransformer

STEPS = 3
PROMPTS = ["a red ring", "a photo of a blue square on a white background, striped"]


def model_of(name: str) -> tuple[Any, Any]:
    pipe = BUILD[name]()
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval()
    pipe.set_progress_bar_config(disable=True)
    return pipe, families()[family_name(name)]


def times_of(pipe: Any, tokens: int) -> Tensor:
    """The timesteps of the pipeline, with the shift for this many latent tokens if it has one."""
    scheduler = pipe.scheduler
    if scheduler.config.get("use_dynamic_shifting"):
        config = scheduler.config
        mu = calculate_shift(
            tokens, config.base_image_seq_len, config.max_image_seq_len, config.base_shift, config.max_shift
        )
        scheduler.set_timesteps(sigmas=numpy.linspace(1.0, 1 / STEPS, STEPS), mu=mu)
    elif isinstance(pipe, ZImagePipeline):
        scheduler.set_timesteps(sigmas=get_default_z_image_sigmas(STEPS))
    elif isinstance(scheduler, FlowMatchEulerDiscreteScheduler) and hasattr(pipe, "_pack_latents"):
        scheduler.set_timesteps(sigmas=numpy.linspace(1.0, 1 / STEPS, STEPS))
    else:
        scheduler.set_timesteps(STEPS)
    return scheduler.timesteps


@torch.no_grad()
def loop(pipe: Any, family: Any, prompt: str, guidance: float, latents: Tensor) -> Tensor:
    """Three steps of our calls: with classifier-free guidance, or with the guidance value of a distilled model."""
    denoiser = DENOISERS[family.denoiser_kind]
    distilled = isinstance(denoiser, FluxTransformer)
    if isinstance(denoiser, FluxTransformer):
        denoiser = replace(denoiser, guidance=guidance)
    texts = [denoiser.encode(pipe, [prompt])]
    if guidance > (0 if isinstance(pipe, ZImagePipeline) else 1) and not distilled:
        texts.append(denoiser.encode(pipe, [""]))
    times = times_of(pipe, latents.shape[-1] * latents.shape[-2] // 4)
    latents = latents * getattr(pipe.scheduler, "init_noise_sigma", 1.0)
    for time in times:
        answers = [denoiser.predict(pipe, latents, time.expand(len(latents)), text) for text in texts]
        base = answers[0 if isinstance(pipe, ZImagePipeline) else -1]  # what the guidance is added to
        answer = base + guidance * (answers[0] - answers[-1])
        latents = pipe.scheduler.step(answer, time, latents, return_dict=False)[0]
    return latents


def drawn(pipe: Any, family: Any, prompt: str, guidance: float, latents: Tensor) -> Tensor:
    """The pipeline's own latents from the same noise."""
    height, width = (side * pipe.vae_scale_factor for side in latents.shape[-2:])
    packs = hasattr(pipe, "_pack_latents")
    given = pipe._pack_latents(latents, *latents.shape) if packs else latents
    found = pipe(
        **family.draw_options, prompt=prompt, num_inference_steps=STEPS, guidance_scale=guidance, height=height,
        width=width, latents=given, output_type="latent",
    ).images  # fmt: skip
    return pipe._unpack_latents(found, height, width, pipe.vae_scale_factor) if packs else found


@pytest.mark.parametrize("shape", [(8, 8), (12, 4)], ids=["square", "wide"])
@pytest.mark.parametrize("guidance", [1.0, 3.5])
@pytest.mark.parametrize("prompt", PROMPTS, ids=["short", "long"])
@pytest.mark.parametrize("name", BUILD)
def test_our_denoising_loop_matches_the_pipeline(
    name: str, prompt: str, guidance: float, shape: tuple[int, int]
) -> None:
    pipe, family = model_of(name)
    noise = torch.randn(1, 4, *shape, generator=torch.Generator().manual_seed(1))
    ours, theirs = loop(pipe, family, prompt, guidance, noise), drawn(pipe, family, prompt, guidance, noise)
    assert theirs.shape == ours.shape
    scale = theirs.abs().max()
    assert (ours - theirs).abs().max() <= 1e-4 * scale


@pytest.mark.parametrize("name", BUILD)
def test_prompt_and_guidance_change_the_image(name: str) -> None:
    """Else the test above could not distinguish prompts or guidance values."""
    pipe, family = model_of(name)
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    first, second = (loop(pipe, family, prompt, 3.5, noise) for prompt in PROMPTS)
    assert (first - second).abs().max() > 1e-4 * first.abs().max()
    if not name.endswith("schnell"):
        other = loop(pipe, family, PROMPTS[0], 1.0, noise)
        assert (first - other).abs().max() > 1e-4 * first.abs().max()
