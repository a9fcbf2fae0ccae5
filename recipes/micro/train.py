"""Trains the micro model from nothing: python -m pivotune.recipes.micro.train --out DIR --seed 0."""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np
import torch

from .data import drawn
from .grammar import sample_scene
from .save import save_model
from .tokenizer import build_tokenizer
from .train_text import train_text
from .train_unet import refine_unet, train_unet
from .train_vae import train_vae


@click.command()
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder for checkpoints and the model.")
@click.option("--seed", default=0, show_default=True)
@click.option("--vae-steps", default=4000, show_default=True)
@click.option("--decoder-steps", default=3000, show_default=True)
@click.option("--text-steps", default=2500, show_default=True)
@click.option("--unet-steps", default=8200, show_default=True)
@click.option("--refine-steps", default=10000, show_default=True)
@click.option("--scenes", default=20000, show_default=True, help="Pictures the denoiser learns from.")
def main(
    out: Path,
    seed: int,
    vae_steps: int,
    decoder_steps: int,
    text_steps: int,
    unet_steps: int,
    refine_steps: int,
    scenes: int,
) -> None:
    """Train all parts one after the other; started again with the same folder, it goes on where it was."""
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    click.echo("autoencoder")
    vae = train_vae(drawn(out, 8000, 1 + seed, free=0.5), out, vae_steps, decoder_steps)
    click.echo("text encoder")
    tokenizer, rng = build_tokenizer(), np.random.default_rng(3 + seed)
    encoder, compound = train_text([sample_scene(rng) for _ in range(60000)], tokenizer, out, text_steps)
    click.echo("denoiser")
    torch.manual_seed(seed)
    shown = drawn(out, scenes, 5 + seed)
    unet = train_unet(shown, vae, encoder, compound, tokenizer, out, unet_steps)
    torch.manual_seed(100 + seed)
    unet = refine_unet(unet, shown, vae, encoder, compound, tokenizer, out, refine_steps)
    save_model(vae, encoder, unet, tokenizer, out / "model")
    click.echo(f"model in {out / 'model'}")


if __name__ == "__main__":
    main()
