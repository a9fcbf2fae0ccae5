"""Training matches sampling: a loop of `encode`, `predict` and scheduler gives the pipeline's latents.

This is the proof of signs, time scaling, packing, masks, templates, guidance and normalization of each family.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache, wraps
from typing import Any

import pytest
import torch
from projects import BUILD, family_name
from torch import Tensor

from pivotune.converters.families import Family, families
from pivotune.pipeline.models.denoisers import DENOISERS, Guided
from pivotune.pipeline.vae import latent_channels, normalization, vae_scale

STEPS = 3
PROMPTS = ["a red ring", "a photo of a blue square on a white background, striped"]
DISTILLED = {"flux", "flux2-dev", "hunyuan-video"}  # the guidance value is an input of the denoiser
FROM_PROMPT = {"z-image", "krea2"}  # guidance is added to the prediction with the prompt
PACKED = {"flux", "flux-schnell", "chroma", "qwen-image", "krea2"}  # latents are a sequence of patches
FRAMES = {"hunyuan-video", "wan", "wan-2.2", "anima"}
OPTIONS: dict[str, dict[str, Any]] = {"lumina2": {"cfg_normalization": False}}
RATIOS = {"cascade"}  # the time is a ratio up to 1, the last of which is the end; each step draws noise
NEGATIVE = {"qwen-image": " "}


def family_of(name: str) -> Family:
    return families()[family_name(name)]


@cache
def model_of(name: str) -> tuple[Any, Family]:
    pipe = BUILD[name]()
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval()
    pipe.set_progress_bar_config(disable=True)
    return pipe, family_of(name)


def noise_for(pipe: Any, shape: tuple[int, int]) -> Tensor:
    channels = latent_channels(pipe.vae.config)
    return torch.randn(1, channels, *shape, generator=torch.Generator().manual_seed(1))


def size_of(pipe: Any, latents: Tensor) -> tuple[int, int]:
    """Height and width in pixels of latents, also for a pipeline that scales every size to one area."""
    height, width = latents.shape[-2:]
    if "default_sample_size" in vars(pipe):  # the pipeline rounds down
        pipe.default_sample_size = (height * width) ** 0.5 + 1e-6
    return int(height * vae_scale(pipe.vae.config)), int(width * vae_scale(pipe.vae.config))


def packed(name: str, pipe: Any, latents: Tensor) -> Tensor:
    """Latents as the pipeline takes them."""
    if name in PACKED:
        return pipe._pack_latents(latents, *latents.shape)
    if name.startswith("flux2"):
        return pipe._patchify_latents(latents)
    return latents.unsqueeze(2) if name in FRAMES else latents


def unpacked(name: str, pipe: Any, found: Tensor, latents: Tensor) -> Tensor:
    """What the pipeline gives as latents, in the form of ours."""
    if name in PACKED:
        height, width = (side * pipe.vae_scale_factor for side in latents.shape[-2:])
        scale = () if name == "krea2" else (pipe.vae_scale_factor,)
        found = pipe._unpack_latents(found, height, width, *scale)
    if name == "flux2-dev":
        found = pipe._unpatchify_latents(found.transpose(1, 2).reshape(pipe._patchify_latents(latents).shape))
    elif name.startswith("flux2"):  # of this pipeline they are as the VAE decodes them
        found = normalization(pipe.vae)(found)
    return found.squeeze(2) if found.ndim == 5 else found


def combined(name: str, pipe: Any, answers: list[Tensor], guidance: float) -> Tensor:
    """Classifier-free guidance as the pipeline has it."""
    if len(answers) == 1:
        return answers[0]
    base = answers[0 if name in FROM_PROMPT else 1]
    answer = base + guidance * (answers[0] - answers[1])
    if name == "qwen-image":  # each patch keeps its norm
        with_prompt, other = (pipe._pack_latents(one, *one.shape) for one in (answers[0], answer))
        scaled = other * with_prompt.norm(dim=-1, keepdim=True) / other.norm(dim=-1, keepdim=True)
        answer = unpacked(name, pipe, scaled, answer)
    return answer


@torch.no_grad()
def both(name: str, prompt: str, guidance: float, shape: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Three steps from the same noise: of our calls, and of the pipeline, with the pipeline's own timesteps."""
    pipe, family = model_of(name)
    noise = noise_for(pipe, shape)
    timesteps: list[Callable[[], None]] = []
    theirs = drawn(name, pipe, family, prompt, guidance, noise, timesteps)
    denoiser = DENOISERS[family.denoiser_kind]
    if isinstance(denoiser, Guided):
        denoiser = replace(denoiser, guidance=guidance)
    texts = [denoiser.encode(pipe, [prompt])]
    if name not in DISTILLED and name != "flux-schnell" and guidance > (0 if name in FROM_PROMPT else 1):
        texts.append(denoiser.encode(pipe, [NEGATIVE.get(name, "")]))
    timesteps[-1]()
    latents = noise * getattr(pipe.scheduler, "init_noise_sigma", 1.0)
    batched, random = name in RATIOS, {"generator": torch.Generator().manual_seed(2)} if name in RATIOS else {}
    for time in pipe.scheduler.timesteps[: -1 if batched else None]:
        times = time.expand(len(latents))
        answers = [denoiser.predict(pipe, latents, times, text) for text in texts]
        answer = combined(name, pipe, answers, guidance)
        latents = pipe.scheduler.step(answer, times if batched else time, latents, return_dict=False, **random)[0]
    return latents, theirs


def guided(pipe: Any, family: Family, guidance: float) -> dict[str, Any]:
    """The argument for the guidance; in a modular pipeline it is a setting of one of its parts."""
    if not family.modular:
        return {family.guidance_argument: guidance}
    pipe.guider.guidance_scale = guidance
    return {}


def drawn(
    name: str, pipe: Any, family: Family, prompt: str, guidance: float, noise: Tensor,
    timesteps: list[Callable[[], None]],
) -> Tensor:  # fmt: skip
    """The pipeline's latents; `timesteps` gets a function that sets the scheduler's timesteps as it did."""
    own = type(pipe.scheduler).set_timesteps.__get__(pipe.scheduler)

    @wraps(own)  # pipelines look at its parameters
    def spy(*args: Any, **options: Any) -> None:
        timesteps.append(lambda: own(*args, **options))
        own(*args, **options)

    pipe.scheduler.set_timesteps = spy
    height, width = size_of(pipe, noise)
    options = family.draw_options | OPTIONS.get(name, {})
    if name in RATIOS:
        options["generator"] = torch.Generator().manual_seed(2)
    result = pipe(
        prompt=prompt, num_inference_steps=STEPS, height=height, width=width, latents=packed(name, pipe, noise),
        **guided(pipe, family, guidance) | options, **{} if family.modular else {"output_type": "latent"},
    )  # fmt: skip
    if family.modular:
        return unpacked(name, pipe, result.latents, noise)
    found = next(getattr(result, key) for key in ("frames", "images", "image_embeddings") if hasattr(result, key))
    return unpacked(name, pipe, found, noise)


@pytest.mark.parametrize("shape", [(8, 8), (12, 4)], ids=["square", "wide"])
@pytest.mark.parametrize("guidance", [1.0, 3.5])
@pytest.mark.parametrize("prompt", PROMPTS, ids=["short", "long"])
@pytest.mark.parametrize("name", BUILD)
def test_our_denoising_loop_matches_the_pipeline(
    name: str, prompt: str, guidance: float, shape: tuple[int, int]
) -> None:
    ours, theirs = both(name, prompt, guidance, shape)
    assert theirs.shape == ours.shape
    assert (ours - theirs).abs().max() <= 1e-4 * theirs.abs().max()


@pytest.mark.parametrize("name", BUILD)
def test_prompt_and_guidance_change_the_image(name: str) -> None:
    """Else the test above could not distinguish prompts or guidance values."""
    first, second = (both(name, prompt, 3.5, (8, 8))[0] for prompt in PROMPTS)
    assert (first - second).abs().max() > 1e-4 * first.abs().max()
    if name != "flux-schnell":
        other = both(name, PROMPTS[0], 1.0, (8, 8))[0]
        assert (first - other).abs().max() > 1e-4 * first.abs().max()


@pytest.mark.parametrize("name", [name for name in BUILD if not family_of(name).decoder])
def test_normalization_is_what_the_pipeline_undoes_before_it_decodes(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe, family = model_of(name)
    noise = noise_for(pipe, (8, 8))
    latents = drawn(name, pipe, family, PROMPTS[0], 1.0, noise, [])
    given: list[Tensor] = []
    decode = pipe.vae.decode
    monkeypatch.setattr(pipe.vae, "decode", lambda z, *a, **options: given.append(z) or decode(z, *a, **options))
    height, width = size_of(pipe, noise)
    pipe(
        prompt=PROMPTS[0], num_inference_steps=STEPS, height=height, width=width, latents=packed(name, pipe, noise),
        **guided(pipe, family, 1.0) | family.draw_options,
    )  # fmt: skip
    decoded = given[0].squeeze(2) if given[0].ndim == 5 else given[0]
    torch.testing.assert_close(normalization(pipe.vae)(decoded), latents, rtol=1e-4, atol=1e-4)
