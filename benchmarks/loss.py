"""Compares the loss of images that were not trained on: a train stage against the loop of diffusers' script.

    python benchmarks/loss.py [--seeds 5] [--steps 300] [--rate 5e-3] [--subject emblem] [--way NAME]…

`plain` restates `textual_inversion.py` of diffusers in a few lines: AdamW over the whole token table, old rows put
back after each step, norms free, no clipping. Every other way changes one setting of it, or of our stage. All start
from the same vectors and have the same ten images, captions, learning rate and number of steps; the loss of all is
measured by `held_out_loss` below, with the same images, noise and timesteps. Writes loss.json row by row (a row that is
there is not measured again).
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from diffusers import DDPMScheduler, StableDiffusionPipeline
from methods_recipes import START
from methods_table import loss_markdown
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from pivotune.pipeline.recipe.load import load_recipe
from pivotune.pipeline.run.runner import run_recipe
from pivotune.pipeline.stages import STAGES
from pivotune.recipes.micro.data import to_tensor
from pivotune.recipes.micro.draw import draw
from pivotune.recipes.micro.grammar import BACKGROUNDS, BIG, CONTRAST, SMALL, Scene, distance
from pivotune.recipes.micro.images import FRAMES, THINGS, placeholder, scenes

HERE = Path(__file__).parent
MODEL = HERE.parent / "recipes" / "micro" / "model"
TOKENS, BATCH = 2, 4
HELD_OUT, DRAWS = 40, 6
SETTINGS = {"flip": 0.0, "decay": 1e-2, "clip": 0.0, "batches": "mixed"}
# way: settings of the plain loop that differ, or lines of our recipe (train stage, concept, embedding)
PLAIN: dict[str, dict[str, Any]] = {
    "plain": {},
    "plain, flips": {"flip": 0.5},
    "plain, no weight decay": {"decay": 0.0},
    "plain, clipped": {"clip": 1.0},
    "plain, batches of 4-3-3": {"batches": "even"},
    "plain, batches of 4-4-2": {"batches": "rest"},
}
OURS: dict[str, dict[str, str]] = {
    "ours": {},
    "ours, batches of four": {"concept": "repeats = 2"},
    "ours, not clipped": {"train": "clip_norm = 0"},
    "ours, preserve_norm initial": {"train": 'preserve_norm = "initial"'},
    "ours, preserve_norm median": {"train": 'preserve_norm = "median"'},
    "ours, weight decay": {"train": 'optimizer = { kind = "adamw", weight_decay = 0.01 }'},
    "ours, second vector of *": {"initial_text": "{start}"},
    "ours, flips": {"train": "flip = true"},
}
RECIPE = """
name = "loss"
seed = {seed}
device = "cpu"
threads = 1
[model]
base = "micro"
[[concept]]
images = {images}
{concept}
[[embedding]]
placeholder = "{name}"
initial_text = "{initial_text}"
tokens = {tokens}
[[stage]]
kind = "tokenize"
[[stage]]
kind = "inject"
[[stage]]
kind = "train"
steps = {steps}
batch_size = {batch}
learning_rate = {rate}
log_every = 100
{train}
[[stage]]
kind = "export"
targets = ["diffusers"]
[samples]
prompts = []
"""


@cache
def pipeline() -> Any:
    return StableDiffusionPipeline.from_pretrained(MODEL, safety_checker=None).to("cpu")


def token_names(subject: str) -> list[str]:
    name = placeholder(subject)
    return [name, *(f"{name}_{index}" for index in range(1, TOKENS))]


def states(encoder: nn.Module, subject: str, texts: list[str], tokenizer: Any) -> Tensor:
    """(count, 77, width): the encoder's output for texts in which the placeholder stands for all of its tokens."""
    full = [text.replace(placeholder(subject), " ".join(token_names(subject))) for text in texts]
    ids = tokenizer(full, padding="max_length", truncation=True, max_length=77, return_tensors="pt").input_ids
    output: Tensor = encoder(ids)[0]
    return output


def with_tokens(subject: str, vectors: Tensor | None = None) -> tuple[nn.Module, Any, slice]:
    """A fresh text encoder and tokenizer with the placeholder's tokens, and where their rows are."""
    pipe = StableDiffusionPipeline.from_pretrained(MODEL, safety_checker=None)
    encoder, tokenizer = pipe.text_encoder, pipe.tokenizer
    before = len(tokenizer)
    assert tokenizer.add_tokens(token_names(subject)) == TOKENS
    [start] = tokenizer.encode(START[subject], add_special_tokens=False)
    encoder.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    table, rows = encoder.get_input_embeddings().weight.data, slice(before, before + TOKENS)
    table[rows] = table[start].clone() if vectors is None else vectors
    return encoder, tokenizer, rows


@cache
def encoded(subject: str, name: str) -> tuple[Tensor, Tensor, list[str]]:
    """Mean and deviation of the latents, and captions: of the images that are trained on, or of `held-out` ones."""
    drawn = scenes(subject) if name == "train" else list(held_out(subject))
    with torch.no_grad():
        found = pipeline().vae.encode(to_tensor(np.stack([draw(scene) for scene, _ in drawn]))).latent_dist
    return found.mean, found.std, [text for _, text in drawn]


def held_out(subject: str) -> Iterator[tuple[Scene, str]]:
    """The subject elsewhere and in other sizes, with captions as those of the shipped images."""
    thing, draw_from = THINGS[subject], np.random.default_rng(1234)
    colours = [colour for colour in (thing.colour, thing.second, thing.mark) if colour is not None]
    grounds = [name for name, rgb in BACKGROUNDS.items() if min(distance(rgb, c) for c in colours) >= CONTRAST]
    for number in range(HELD_OUT):
        radius = float(draw_from.uniform(SMALL[0] + 2, BIG[1] - 1))
        x, y = (float(32 + shift) for shift in draw_from.uniform(radius - 29, 29 - radius, 2))
        ground = grounds[number % len(grounds)]
        text = FRAMES[number % len(FRAMES)].format(placeholder(subject), ground)
        yield Scene(thing, BACKGROUNDS[ground], x, y, radius), text


@torch.no_grad()
def held_out_loss(subject: str, vectors: Tensor | None) -> float:
    """Mean squared error of the velocity on the held-out images, each with the same noises and timesteps."""
    pipe, schedule = pipeline(), DDPMScheduler.from_pretrained(MODEL, subfolder="scheduler")
    encoder, tokenizer, _ = with_tokens(subject, vectors)
    means, _, texts = encoded(subject, "held-out")
    latents, hidden = means * pipe.vae.config.scaling_factor, states(encoder, subject, texts, tokenizer)
    source, losses = torch.Generator().manual_seed(99), []
    for draw_number in range(DRAWS):
        noise = torch.randn(latents.shape, generator=source)
        order = torch.randperm(HELD_OUT, generator=source)  # timesteps spread evenly over 0..999
        times = ((order * DRAWS + draw_number) * 1000 + 500) // (HELD_OUT * DRAWS)
        noisy, target = schedule.add_noise(latents, noise, times), schedule.get_velocity(latents, noise, times)
        losses.append(mse_loss(pipe.unet(noisy, times, hidden).sample, target))
    return float(torch.stack(losses).mean())


def batches(kind: str, count: int, source: torch.Generator) -> Iterator[list[int]]:
    """Endless batches: `mixed`, the images a hundred times each, shuffled, as the script's dataset repeats them;
    `even`, each epoch split into 4-3-3; `rest`, into 4-4-2.
    """
    while True:
        order = torch.randperm(count * (100 if kind == "mixed" else 1), generator=source) % count
        sizes = [4, 3, 3] if kind == "even" else [BATCH] * -(-len(order) // BATCH)
        yield from (part.tolist() for part in order.split([*sizes[:-1], len(order) - sum(sizes[:-1])]))


def train_plain(subject: str, seed: int, steps: int, rate: float, **changed: Any) -> Tensor:
    """(tokens, width) vectors that the script's loop trains."""
    settings = SETTINGS | changed
    source = torch.Generator().manual_seed(seed)
    pipe, schedule = pipeline(), DDPMScheduler.from_pretrained(MODEL, subfolder="scheduler")
    encoder, tokenizer, rows = with_tokens(subject)
    encoder.requires_grad_(False)
    weight = encoder.get_input_embeddings().weight.requires_grad_(True)
    original, new = weight.detach().clone(), weight.detach()[rows]
    optimizer = torch.optim.AdamW([weight], lr=rate, weight_decay=settings["decay"])
    means, deviations, texts = encoded(subject, "train")
    turn = batches(settings["batches"], len(texts), source)
    pipe.unet.requires_grad_(False)
    for _ in range(steps):
        chosen = next(turn)
        latents = means[chosen] + deviations[chosen] * torch.randn(means[chosen].shape, generator=source)
        latents = latents * pipe.vae.config.scaling_factor
        mirrored = torch.rand(len(chosen), generator=source) < settings["flip"]
        latents = torch.where(mirrored[:, None, None, None], latents.flip(-1), latents)
        noise = torch.randn(latents.shape, generator=source)
        times = torch.randint(0, 1000, (len(chosen),), generator=source)
        hidden = states(encoder, subject, [texts[index] for index in chosen], tokenizer)
        prediction = pipe.unet(schedule.add_noise(latents, noise, times), times, hidden).sample
        mse_loss(prediction, schedule.get_velocity(latents, noise, times)).backward()
        if settings["clip"]:
            assert weight.grad is not None
            nn.utils.clip_grad_norm_([weight], settings["clip"])
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            weight[: rows.start] = original[: rows.start]
    return new.clone()


def train_ours(subject: str, seed: int, steps: int, rate: float, **changed: str) -> Tensor:
    """(tokens, width) vectors that a train stage trains and the export stage writes."""
    parts = {"concept": "", "train": "", "initial_text": " ".join([START[subject]] * TOKENS)} | changed
    images = json.dumps(str(HERE.parent / "recipes" / "images" / subject))
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "recipe.toml"
        parts["initial_text"] = parts["initial_text"].format(start=START[subject])
        text = RECIPE.format(
            seed=seed,
            steps=steps,
            images=images,
            name=placeholder(subject),
            tokens=TOKENS,
            batch=BATCH,
            rate=rate,
            **parts,
        )
        path.write_text(text, "utf-8")
        run_recipe(load_recipe(path), STAGES, out=Path(name) / "run", progress=lambda text: None, bar=False)
        [file] = (Path(name) / "run" / "exports" / "loss_embeddings").glob("*.safetensors")
        [vectors] = load_file(file).values()
        return vectors


@click.command()
@click.option("--seeds", default=5, show_default=True)
@click.option("--steps", default=300, show_default=True)
@click.option("--rate", default=5e-3, show_default=True, help="Learning rate.")
@click.option("--subject", default="emblem", show_default=True, type=click.Choice(list(THINGS)))
@click.option("--way", "ways", multiple=True, type=click.Choice([*PLAIN, *OURS]), default=(*PLAIN, *OURS))
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), default=HERE / "loss.json")
def main(seeds: int, steps: int, rate: float, subject: str, ways: tuple[str, ...], out: Path) -> None:
    """Train every way with every seed, and print the tables, which methods.py puts into METHODS.md."""
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = json.loads(out.read_text("utf-8")) if out.is_file() else []
    same = {"subject": subject, "rate": rate, "steps": steps}
    click.echo(f"before training: {held_out_loss(subject, None):.4f}")
    for seed in range(seeds):
        for way in ways:
            this = {"way": way, "seed": seed} | same
            if any(this.items() <= row.items() for row in rows):
                continue
            train = train_plain if way in PLAIN else train_ours
            vectors = train(subject, seed, steps, rate, **(PLAIN | OURS)[way])
            loss, norm = held_out_loss(subject, vectors), float(vectors.norm(dim=1).mean())
            rows.append(this | {"loss": round(loss, 5), "norm": round(norm, 3)})
            out.write_text(json.dumps(rows, indent=1) + "\n", "utf-8")
            click.echo(rows[-1])
    click.echo(loss_markdown(rows, [*PLAIN, *OURS]))


if __name__ == "__main__":
    main()
