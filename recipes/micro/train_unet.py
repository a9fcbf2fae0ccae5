"""Trains the denoiser on latents encoded once, under captions that change."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from .build import build_scheduler, build_unet
from .data import Drawn, to_tensor
from .text import Compound, encode, slot_id, tokenise
from .train_vae import encode as encode_images
from .training import fit

BATCH = 16
CAPTION_SETS = 6  # so many captions an image
DECAY = 0.999  # of the mean of the weights, which is what ships
OFTEN = 4.0  # so much likelier is a thing of two colours when the denoiser is refined


def train_unet(
    data: Drawn,
    vae: AutoencoderKL,
    encoder: CLIPTextModel,
    compound: Compound,
    tokenizer: CLIPTokenizer,
    folder: Path,
    steps: int,
) -> UNet2DConditionModel:
    """The mean of the denoiser's weights over the last thousand steps or so."""
    world = World(data, cached_latents(vae, data, folder), encoder, compound, tokenizer)
    even = torch.ones(len(data.scenes))
    return _train(build_unet(), world, even, 10, steps, 1.2e-3, folder / "unet.pt")


def refine_unet(
    unet: UNet2DConditionModel,
    data: Drawn,
    vae: AutoencoderKL,
    encoder: CLIPTextModel,
    compound: Compound,
    tokenizer: CLIPTokenizer,
    folder: Path,
    steps: int,
) -> UNet2DConditionModel:
    """Go on from a trained denoiser, with new captions and things of two colours `OFTEN` times as often.

    Plain things are drawn right long before striped and dotted ones are.
    """
    world = World(data, cached_latents(vae, data, folder), encoder, compound, tokenizer)
    often = torch.tensor([1.0 if scene.thing.texture == "plain" else OFTEN for scene in data.scenes])
    return _train(unet, world, often, 40, steps, 8e-4, folder / "refined.pt")


@dataclass(frozen=True, eq=False)
class World:
    """What the denoiser learns from: scenes with their latents, and what makes states of captions."""

    data: Drawn
    latents: Tensor
    encoder: CLIPTextModel
    compound: Compound
    tokenizer: CLIPTokenizer


def _train(
    start: UNet2DConditionModel, world: World, weights: Tensor, seed: int, steps: int, rate: float, file: Path
) -> UNet2DConditionModel:
    """Train from `start` on scenes drawn by their weights; captions are made anew from the seed."""
    sets = [tokenise(world.data.scenes, world.tokenizer, seed=seed + n) for n in range(CAPTION_SETS)]
    unet = copy.deepcopy(start).requires_grad_(True).to(memory_format=torch.channels_last)
    mean = copy.deepcopy(unet).requires_grad_(False)
    alphas, slot = build_scheduler().alphas_cumprod, slot_id(world.tokenizer)

    def loss_of(step: int) -> Tensor:
        rows = torch.multinomial(weights, BATCH)
        with torch.no_grad():
            states = encode(world.encoder, world.compound, sets[step % CAPTION_SETS].rows(rows), slot)
        return velocity_loss(unet, world.latents[rows], states, alphas)

    def after(step: int) -> None:
        decay = min(DECAY, (step + 1) / (step + 10))
        torch._foreach_lerp_(list(mean.parameters()), list(unet.parameters()), 1 - decay)

    optimizer = torch.optim.AdamW(unet.parameters(), lr=rate, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
    modules = nn.ModuleDict({"unet": unet, "mean": mean})
    fit(modules, loss_of, optimizer, steps, file, after)
    return mean


def velocity_loss(unet: UNet2DConditionModel, latents: Tensor, states: Tensor, alphas: Tensor) -> Tensor:
    """Mean squared error of the velocity (Salimans and Ho 2022) at random time steps.

    Four in five time steps come from a logit-normal: in the middle it is decided what is drawn.
    """
    count = len(latents)
    middle = torch.sigmoid(0.25 + 1.1 * torch.randn(count))
    share = torch.where(torch.rand(count) < 0.8, middle, torch.rand(count))
    times = (share * len(alphas)).long().clamp(max=len(alphas) - 1)
    keep = alphas[times].view(-1, 1, 1, 1)
    noise = torch.randn_like(latents)
    noised = keep.sqrt() * latents + (1 - keep).sqrt() * noise
    velocity = keep.sqrt() * noise - (1 - keep).sqrt() * latents
    noised = noised.contiguous(memory_format=torch.channels_last)
    return (unet(noised, times, states).sample - velocity).square().mean()


def cached_latents(vae: AutoencoderKL, data: Drawn, folder: Path) -> Tensor:
    """Scaled latents of all images, (count, 4, 16, 16), encoded once."""
    file = folder / "latents.pt"
    if file.exists():
        cached: Tensor = torch.load(file, weights_only=True)
        return cached
    with torch.no_grad():
        parts = [encode_images(vae, to_tensor(data.images[n : n + 500])) for n in range(0, len(data.scenes), 500)]
    latents = torch.cat(parts) * vae.config.scaling_factor
    torch.save(latents, file)
    return latents
