"""Images of a page: thumbnails as data URIs within a budget, and which belong together."""

from __future__ import annotations

import base64
import io
import os
import warnings
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

from ..files import sha256 as file_hash

Json = dict[str, Any]

BUDGET = 3_300_000  # characters of all data URIs of a page
EDGES = ((24, 512), (80, 320), (200, 224))  # up to so many images, an edge of so many pixels; beyond them the last
TINY = 160  # pixels; smaller images are not resized, and are shown without smoothing
SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif"}


@dataclass(frozen=True)
class Shown:
    """An image on the page. Without a `uri` there is none, and `why` is shown in its place."""

    uri: str | None
    why: str
    width: int
    height: int
    tiny: bool
    seed: int | None = None


class Gallery:
    """Makes thumbnails until the page's budget is used up."""

    def __init__(self, images: int, budget: int = BUDGET) -> None:
        self.edge = next((edge for most, edge in EDGES if images <= most), EDGES[-1][1])
        self.left = budget

    def show(self, path: Path | None, seed: int | None = None, *, sha256: str | None = None) -> Shown:
        """Raises nothing for an image that is missing or corrupt: the page names that in its place.

        With `sha256` a file with other content counts as missing: a received manifest may name any file.
        """
        if path is None or not os.path.isfile(path):  # Path.is_file raises where a folder may not be entered
            return absent("missing", seed)
        try:
            if sha256 is not None and file_hash(path) != sha256:
                return absent("missing", seed)
            if self.left <= 0:
                return absent("omitted", seed)
            shown = _thumbnail(path, self.edge, seed)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
            return absent("unreadable", seed)
        self.left -= len(shown.uri or "")
        return shown


def absent(why: str, seed: int | None) -> Shown:
    """What is shown in place of an image."""
    return Shown(None, why, 1, 1, False, seed)


def _thumbnail(path: Path, edge: int, seed: int | None) -> Shown:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # damaged EXIF: the image is still shown
        with Image.open(path) as opened:
            opened.draft("RGB", (2 * edge, 2 * edge))
            image = _flat(ImageOps.exif_transpose(opened))
    tiny = max(image.size) <= TINY
    if not tiny:
        image.thumbnail((edge, edge), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, **({"format": "PNG"} if tiny else {"format": "JPEG", "quality": 84}), optimize=True)
    kind = "png" if tiny else "jpeg"
    uri = f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
    return Shown(uri, "", *image.size, tiny, seed)


def _flat(image: Image.Image) -> Image.Image:
    """The image on white, without transparency."""
    if not image.has_transparency_data:
        return image.convert("RGB")
    image = image.convert("RGBA")
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image).convert("RGB")


def inside(folder: Path, path: str) -> Path | None:
    """A file of the run, or None for a path outside its folder."""
    found = (folder / path).resolve()
    return found if found.is_relative_to(folder.resolve()) else None


def pairs(images: list[Json], embedding: str | None) -> list[tuple[Json | None, Json | None, list[tuple[Any, Any]]]]:
    """The samples of an embedding as (first before, first after, [(before, after) at each seed]) for each prompt.

    The prompts differ (one has the initial text, the other the placeholder), so they are matched by their order. None
    where one side is missing.
    """
    sides = [_by_prompt([p for p in images if p["when"] == when and p.get("embedding") == embedding]) for when in _WHEN]
    found = []
    for before, after in zip_longest(*sides, fillvalue={}):
        seeds = list(dict.fromkeys([*before, *after]))
        rows = [(before.get(seed), after.get(seed)) for seed in seeds]
        found.append((next(iter(before.values()), None), next(iter(after.values()), None), rows))
    return found


_WHEN = ("before", "after")


def _by_prompt(images: list[Json]) -> list[dict[Any, Json]]:
    """Seed to image for each prompt. Embeddings may share an initial text: a repeated seed begins a new prompt."""
    prompts: list[dict[Any, Json]] = []
    last = None
    for image in images:
        if not prompts or image["prompt"] != last or image.get("seed") in prompts[-1]:
            prompts.append({})
        last = image["prompt"]
        prompts[-1][image.get("seed")] = image
    return prompts


def training_images(manifest: Json, folder: Path) -> dict[str, Path | None]:
    """Every training image of the manifest and its path now; None where it is missing.

    Their paths are relative to the recipe's folder, which is a parent of a concept's images.
    """
    recipe = manifest.get("recipe") or {}
    concepts = [Path(str(concept.get("images"))) for concept in recipe.get("concept") or [] if concept.get("images")]
    homes = list(dict.fromkeys([folder, *(home for images in concepts for home in (images, *images.parents))]))
    found: dict[str, Path | None] = {}
    for name in (manifest.get("data") or {}).get("files") or {}:
        if Path(name).suffix.lower() in SUFFIXES:
            home = next((home for home in homes if os.path.isfile(home / name)), None)
            found[name] = home / name if home else None
            if home:  # the next one is probably there too
                homes.remove(home)
                homes.insert(0, home)
    return found


COLUMNS = 10  # steps that are shown; of more, evenly spaced ones with the first and the last
ROWS = 12
STRIP_BUDGET = 1_000_000  # characters of the images' data URIs


def through_time(metrics: list[Json], folder: Path) -> Json:
    """Sample images during training: `rows` by prompt and seed, each with `shots` (label, image); `left` counts others.

    Rows of the metrics name the images (`images`: path, prompt, seed), so that a run in progress can be shown.
    """
    lines = [line for line in metrics if line.get("images")]
    several = len({line.get("stage") for line in lines}) > 1
    chosen = _evenly_spaced(lines, COLUMNS)
    rows: dict[tuple[str, int | None], list[tuple[str, Json]]] = {}
    for line in chosen:
        label = f"stage {line['stage']}, step {line['step']:,}" if several else f"step {line['step']:,}"
        for image in line["images"]:
            rows.setdefault((image["prompt"], image.get("seed")), []).append((label, image))
    shown = list(rows.items())[:ROWS]
    gallery = Gallery(sum(len(shots) for _, shots in shown), STRIP_BUDGET)
    made = []
    for (prompt, seed), shots in shown:
        drawn = [(label, gallery.show(inside(folder, image["path"]))) for label, image in shots]
        made.append({"prompt": prompt, "seed": seed, "shots": drawn})
    return {"rows": made, "moments": len(chosen), "all": len(lines), "left": len(rows) - len(shown)}


def _evenly_spaced(lines: list[Json], most: int) -> list[Json]:
    if len(lines) <= most:
        return lines
    return [lines[round(n * (len(lines) - 1) / (most - 1))] for n in range(most)]
