"""Draws the curves of the training and a grid of unseen captions: python -m pivotune.recipes.micro.show OUT MODEL."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path

import click
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from .exam import full_caption, prepared
from .sample import load, sample

PARTS = {
    "vae": "autoencoder",
    "decoder": "decoder alone",
    "text": "text encoder",
    "unet": "denoiser",
    "refined": "denoiser, refined",
}


def curves(folder: Path, file: Path) -> None:
    """The loss of every part over its steps, from the JSON lines that the training left in the folder."""
    figure, axes = plt.subplots(1, len(PARTS), figsize=(17, 3), constrained_layout=True)
    for axis, (name, title) in zip(axes, PARTS.items(), strict=True):
        lines = [json.loads(line) for line in (folder / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]
        axis.plot([line["step"] for line in lines], [line["loss"] for line in lines], linewidth=1)
        axis.set(title=title, xlabel="step", yscale="log")
        axis.grid(visible=True, which="both", alpha=0.3)
    axes[0].set_ylabel("loss, mean of 50 steps")
    figure.savefig(file, dpi=90)
    plt.close(figure)


def unseen(model: Path, work: Path, file: Path, rows: int = 4, columns: int = 8) -> None:
    """What the model draws for captions it never saw: the first ones of its exam, not chosen."""
    captions = [full_caption(scene) for scene in prepared(work, 500)[0][: rows * columns]]
    images = sample(load(model), captions)
    figure, axes = plt.subplots(rows, columns, figsize=(columns * 1.6, rows * 2.1), constrained_layout=True)
    for axis, image, caption in zip(axes.flat, images, captions, strict=True):
        axis.imshow(image, interpolation="nearest")
        axis.set_title(textwrap.fill(caption.removeprefix("a photo of "), 26), fontsize=6)
        axis.axis("off")
    figure.savefig(file, dpi=110)
    plt.close(figure)


@click.command()
@click.argument("out", type=click.Path(path_type=Path, exists=True))
@click.argument("model", type=click.Path(path_type=Path, exists=True))
def main(out: Path, model: Path) -> None:
    """Write curve.png from the training in OUT, and grid.png with MODEL, beside this file."""
    here = Path(__file__).parent
    curves(out, here / "curve.png")
    unseen(model, out, here / "grid.png")


if __name__ == "__main__":
    main()
