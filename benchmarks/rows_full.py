"""Stable Diffusion 1.5 at full size with random weights: start-up, a step and peak memory of a run on the CPU, beside
those of a textual inversion loop written with diffusers alone.

Both read the same folder and train an embedding in float32 with images of 256 pixels, which are encoded in each step.
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

from measure import HERE, Row, in_fresh_process, ratios

ROUNDS, STEPS, PIXELS = 3, 3, 256
IMAGES = HERE.parent / "recipes" / "images" / "emblem"
PLACEHOLDER = "<my-emblem>"
SCHEDULER = {
    "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False,
    "set_alpha_to_one": False, "steps_offset": 1,
}  # fmt: skip
RECIPE = """
name = "full"
device = "cpu"
[model]
base = "MODEL"
family = "sd1"
[data]
cache_latents = "off"
[[concept]]
images = "IMAGES"
captions = "beside"
[[embedding]]
placeholder = "PLACEHOLDER"
initial_text = "a"
tokens = 1
[[stage]]
kind = "tokenize"
[[stage]]
kind = "inject"
[[stage]]
kind = "train"
steps = STEPS
resolution = PIXELS
learning_rate = 5e-3
[[stage]]
kind = "export"
targets = ["a1111"]
[samples]
count = 1
steps = 1
size = 64
guidance = 1.0
before = "never"
"""


def rows() -> list[Row]:
    with tempfile.TemporaryDirectory() as folder:
        in_fresh_process("rows_full.py", "build", folder)
        in_fresh_process("rows_full.py", "ours", folder)  # hashes the model; later runs need not
        found: dict[str, list[Any]] = {"plain": [], "ours": []}
        for _ in range(ROUNDS):
            for mode, measured in found.items():
                measured.append(in_fresh_process("rows_full.py", mode, folder))
    return rows_of(found["ours"], found["plain"])


def rows_of(ours: list[Any], plain: list[Any]) -> list[Row]:
    """The rows of as many runs of both."""
    times = {key: ratios([one[key] for one in ours], [one[key] for one in plain]) for key in ("start", "step", "peak")}
    of, estimated = "Stable Diffusion 1.5, full size", [one["estimated"] for one in ours]
    return [
        Row(f"{of}: CPU time up to the end of the first step", "<= 1.0 of diffusers' loop", 1.0, times["start"]),
        Row(f"{of}: CPU time of a step", "<= 1.0 of diffusers' loop", 1.0, times["step"]),
        Row(f"{of}: peak memory of the process", "<= 1.05 of diffusers' loop", 1.05, times["peak"]),
        Row(f"{of}: peak memory / estimate before the run", "<= 1.15", 1.15, estimated),
        Row(f"{of}: estimate before the run / peak memory", "<= 1.15", 1.15, [1 / one for one in estimated]),
    ]


def build(folder: Path) -> None:
    """The model, by the default configs of diffusers, and the recipe."""
    import torch
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from rows_setup import make_tokenizer
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(0)
    text = CLIPTextConfig(
        vocab_size=49408, hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12,
        projection_dim=768, bos_token_id=49406, eos_token_id=49407, pad_token_id=49407,
    )  # fmt: skip
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(128, 256, 512, 512), layers_per_block=2, latent_channels=4, sample_size=512,
    )  # fmt: skip
    unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768)
    StableDiffusionPipeline(
        vae=vae, text_encoder=CLIPTextModel(text), tokenizer=make_tokenizer(), unet=unet,
        scheduler=DDIMScheduler(**SCHEDULER), safety_checker=None, feature_extractor=None,
    ).save_pretrained(folder / "model")  # fmt: skip
    recipe = RECIPE
    values = {"MODEL": folder / "model", "IMAGES": IMAGES, "PLACEHOLDER": PLACEHOLDER, "STEPS": STEPS, "PIXELS": PIXELS}
    for name, value in values.items():
        recipe = recipe.replace(name, str(value))
    (folder / "full.toml").write_text(recipe, "utf-8")


def measure(mode: str, folder: Path) -> dict[str, float]:
    """CPU seconds up to the denoiser's second call and from call to call, and the peak of this process in bytes."""
    from diffusers import UNet2DConditionModel

    calls: list[float] = []
    forward = UNet2DConditionModel.forward

    def timed(self: Any, *inputs: Any, **options: Any) -> Any:
        calls.append(time.process_time())
        return forward(self, *inputs, **options)

    UNet2DConditionModel.forward = timed
    found: dict[str, float] = {}
    if mode == "ours":
        found["estimate"] = ours(folder)
    else:
        plain(folder / "model")
    scale = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale
    steps = [after - before for before, after in pairwise(calls[1:STEPS])]
    return {
        "start": calls[1],
        "step": sum(steps) / len(steps),
        "peak": peak,
        "estimated": peak / found.get("estimate", peak),
    }


def ours(folder: Path) -> float:
    """A whole run with its export. Returns the memory that was estimated before it, in bytes."""
    from pivotune.pipeline.cli.main import pivotune as cli

    with tempfile.TemporaryDirectory() as out:
        cli(["run", str(folder / "full.toml"), "--out", f"{out}/run"], standalone_mode=False)
        facts = json.loads(Path(out, "run", "manifest.json").read_text("utf-8"))["preflight"]
    return float(facts["memory"]["most"])


def plain(model: Path) -> None:
    """The loop of the textual inversion scripts: the whole token table is trained, then all but one row is put back."""
    import numpy as np
    import torch
    from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
    from diffusers.optimization import get_scheduler
    from PIL import Image
    from torch.nn.functional import mse_loss
    from transformers import CLIPTextModel, CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(model, subfolder="tokenizer")
    noise_scheduler = DDPMScheduler.from_pretrained(model, subfolder="scheduler")
    encoder = CLIPTextModel.from_pretrained(model, subfolder="text_encoder")
    vae = AutoencoderKL.from_pretrained(model, subfolder="vae").requires_grad_(False)
    unet = UNet2DConditionModel.from_pretrained(model, subfolder="unet").requires_grad_(False)
    tokenizer.add_tokens([PLACEHOLDER])
    token = tokenizer.convert_tokens_to_ids(PLACEHOLDER)
    encoder.resize_token_embeddings(len(tokenizer))
    encoder.requires_grad_(False)
    table = encoder.get_input_embeddings().weight.requires_grad_(True)
    original, others = table.detach().clone(), torch.arange(len(table)) != token
    optimizer = torch.optim.AdamW([table], lr=5e-3)
    schedule = get_scheduler("constant", optimizer=optimizer)
    images = sorted(IMAGES.glob("*.png"))
    encoder.train()
    for step in range(STEPS):
        path = images[step % len(images)]
        with Image.open(path) as opened:
            image = opened.convert("RGB").resize((PIXELS, PIXELS), Image.Resampling.BICUBIC)
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 127.5 - 1.0
        caption = path.with_suffix(".txt").read_text("utf-8")
        ids = tokenizer(caption, padding="max_length", truncation=True, return_tensors="pt").input_ids
        with torch.no_grad():
            latents = vae.encode(pixels).latent_dist.sample() * vae.config.scaling_factor
        noise = torch.randn_like(latents)
        timesteps = torch.randint(0, noise_scheduler.config.num_train_timesteps, (1,))
        noisy = noise_scheduler.add_noise(latents, noise, timesteps)
        mse_loss(unet(noisy, timesteps, encoder(ids)[0]).sample, noise).backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        with torch.no_grad():
            table[others] = original[others]


if __name__ == "__main__":
    mode, folder = sys.argv[1], Path(sys.argv[2])
    print(json.dumps(build(folder) if mode == "build" else measure(mode, folder)))
