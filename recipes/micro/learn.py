"""Measures how well the model learns embeddings for the shipped images: python -m pivotune.recipes.micro.learn MODEL.

A short stand-in for the pipeline, so that the model can be measured by itself: the embeddings' vectors are put where
the token of SLOT stands, and trained with everything else frozen, or together with a LoRA on the denoiser.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from peft import LoraConfig
from torch import Tensor, nn

from .build import build_scheduler
from .captions import SLOT
from .data import to_images, to_tensor
from .draw import draw
from .exam import fingerprints
from .grammar import BACKGROUNDS, CONTRAST, Scene, Thing, distance
from .images import THINGS, placeholder, scenes
from .judge import HIT, background_word, distance_to_drawing
from .sample import load, sample
from .text import slot_id
from .train_unet import velocity_loss

# What training starts from, and the best words that the model knows for the thing.
STARTS = {"emblem": "ring", "salmon-heart": "heart", "two-tone": "square", "logo": "square", "moon": "circle"}
BEST = {
    "emblem": "a teal ring with an orange dot",
    "salmon-heart": "a pink heart",
    "two-tone": "a striped purple and yellow square",
    "logo": "a red triangle with a white dot",
    "moon": "a blue circle",
}
LAYERS = ["to_q", "to_k", "to_v", "to_out.0", "net.0.proj", "net.2", "proj_in", "proj_out", "conv1", "conv2"]


def start_vectors(pipe: Any, text: str, tokens: int) -> nn.Parameter:
    """The text's vectors, cut to the number of tokens or filled up with those of *; (tokens, width)."""
    ids = pipe.tokenizer(text + " *" * tokens, add_special_tokens=False).input_ids[:tokens]
    return nn.Parameter(pipe.text_encoder.get_input_embeddings().weight[ids].detach().clone())


def states(pipe: Any, texts: list[str], vectors: Tensor) -> Tensor:
    """The encoder's answers, (count, 77, width), with the vectors in every run of SLOTs."""
    ids = pipe.tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids
    slots = ids == slot_id(pipe.tokenizer)

    def fill(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return output.masked_scatter(slots[..., None], vectors.repeat(int(slots.sum()) // len(vectors), 1))

    handle = pipe.text_encoder.get_input_embeddings().register_forward_hook(fill)
    try:
        answer: Tensor = pipe.text_encoder(ids).last_hidden_state
    finally:
        handle.remove()
    return answer


def train_embedding(pipe: Any, name: str, vectors: nn.Parameter, steps: int, rank: int = 0, seed: int = 0) -> None:
    """Train the vectors in place, and with a rank a LoRA that stays in the pipeline's denoiser."""
    drawn = scenes(name)
    word = " ".join([SLOT] * len(vectors))
    texts = [text.replace(placeholder(name), word) for _, text in drawn]
    with torch.no_grad():
        latents = pipe.vae.encode(to_tensor(np.stack([draw(scene) for scene, _ in drawn]))).latent_dist.mean
    latents = latents * pipe.vae.config.scaling_factor
    groups = [{"params": [vectors], "lr": 1.5e-2}]
    pipe.unet.requires_grad_(False)
    if rank:
        torch.manual_seed(seed)
        pipe.unet.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=LAYERS))
        groups.append({"params": [p for p in pipe.unet.parameters() if p.requires_grad], "lr": 2e-3})
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.99), weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: min((n + 1) / 10, (1 - n / steps) ** 0.5))
    alphas = build_scheduler().alphas_cumprod
    torch.manual_seed(seed)
    for _ in range(steps):
        rows = torch.randint(len(texts), (4,))
        loss = velocity_loss(pipe.unet, latents[rows], states(pipe, [texts[n] for n in rows], vectors), alphas)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


def measure(pipe: Any, thing: Thing, said: str, vectors: Tensor, count: int = 16) -> dict[str, float]:
    """Draw the embedding on all backgrounds it stands out from: hits, median distance, right backgrounds."""
    colours = [colour for colour in (thing.colour, thing.second, thing.mark) if colour is not None]
    grounds = [word for word, rgb in BACKGROUNDS.items() if min(distance(rgb, c) for c in colours) >= CONTRAST]
    asked = [grounds[n % len(grounds)] for n in range(count)]
    with torch.no_grad():
        embeddings = states(pipe, [f"a photo of {said} on a {ground} background" for ground in asked], vectors)
    images = sample(pipe, embeddings, seed=5)
    errors = [distance_to_drawing(image, Scene(thing, (0, 0, 0))) for image in images]
    right = [background_word(image) == ground for image, ground in zip(images, asked, strict=True)]
    return {
        "hits": round(float(np.mean(np.array(errors) < HIT)), 3),
        "median distance": round(float(np.median(errors)), 1),
        "backgrounds": round(float(np.mean(right)), 3),
    }


def ceiling(pipe: Any, name: str) -> float:
    """The median distance of the shipped images themselves after the autoencoder: no embedding can do better."""
    drawn = [scene for scene, _ in scenes(name)]
    with torch.no_grad():
        latents = pipe.vae.encode(to_tensor(np.stack([draw(scene) for scene in drawn]))).latent_dist.mean
        images = to_images(pipe.vae.decode(latents).sample)
    return round(float(np.median([distance_to_drawing(p, s) for p, s in zip(images, drawn, strict=True)])), 1)


def row(folder: Path, name: str, tokens: int = 2, steps: int = 200, lora_steps: int = 300) -> dict[str, Any]:
    """All that is measured of one thing."""
    pipe, thing = load(folder), THINGS[name]
    vectors, word = start_vectors(pipe, STARTS[name], tokens), " ".join([SLOT] * tokens)
    measured: dict[str, Any] = {"autoencoder": ceiling(pipe, name)}
    measured["before"] = measure(pipe, thing, word, vectors)
    measured["best words"] = measure(pipe, thing, BEST[name], vectors)
    train_embedding(pipe, name, vectors, steps)
    measured["embedding"] = measure(pipe, thing, word, vectors)
    if lora_steps:
        vectors = start_vectors(pipe, STARTS[name], tokens)
        train_embedding(pipe, name, vectors, lora_steps, rank=8)
        measured["embedding and LoRA"] = measure(pipe, thing, word, vectors)
    return measured


@click.command()
@click.argument("model", type=click.Path(path_type=Path, exists=True))
@click.option("--out", type=click.Path(path_type=Path), default=Path(__file__).parent / "learned.json")
@click.option("--thing", "names", multiple=True, type=click.Choice(list(THINGS)), default=list(THINGS))
def main(model: Path, out: Path, names: tuple[str, ...]) -> None:
    """Teach MODEL the shipped things and write what came of it as JSON."""
    result: dict[str, Any] = {"sha256": fingerprints(model), "things": {}}
    for name in names:
        result["things"][name] = row(model, name)
        click.echo(f"{name}: {json.dumps(result['things'][name])}")
    out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
