"""Draws with the model: many prompts in small batches, the same seed for the same place in the list."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

STEPS, GUIDANCE = 20, 3.0


def load(folder: Path) -> Any:
    """The pipeline in float32."""
    pipe = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    pipe.unet.to(memory_format=torch.channels_last)  # a tenth faster on a CPU
    return pipe


def sample(
    pipe: Any, prompts: list[str] | torch.Tensor, seed: int = 0, batch: int = 25, guidance: float = GUIDANCE
) -> npt.NDArray[np.uint8]:
    """Images for the prompts or for encoded ones (count, 77, width): (count, 64, 64, 3)."""
    images = []
    empty = pipe.encode_prompt("", "cpu", 1, False)[0]
    for start in range(0, len(prompts), batch):
        part = prompts[start : start + batch]
        if isinstance(part, torch.Tensor):
            asked = {"prompt_embeds": part, "negative_prompt_embeds": empty.expand(len(part), -1, -1)}
        else:
            asked = {"prompt": part}
        answer = pipe(
            **asked,
            num_inference_steps=STEPS,
            guidance_scale=guidance,
            height=64,
            width=64,
            generator=[torch.Generator().manual_seed(1_000_003 * seed + start + n) for n in range(len(part))],
            output_type="np",
        )
        images.append(np.round(answer.images * 255).astype(np.uint8))
    return np.concatenate(images)


def grid(images: npt.NDArray[np.uint8], columns: int, scale: int = 2) -> Image.Image:
    """The images side by side, white between them."""
    size = 64 * scale + 4
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * size, rows * size), "white")
    for number, image in enumerate(images):
        shown = Image.fromarray(image).resize((64 * scale, 64 * scale), Image.Resampling.NEAREST)
        sheet.paste(shown, (number % columns * size + 2, number // columns * size + 2))
    return sheet
