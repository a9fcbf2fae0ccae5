"""Pictures for a page: thumbnails as data URIs within a budget, and which of them belong side by side."""

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
EDGES = ((24, 512), (80, 320), (200, 224))  # up to so many pictures, so many pixels; beyond them the last
TINY = 160  # pixels; smaller pictures are kept as they are and shown with hard edges
SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif"}


@dataclass(frozen=True)
class Shown:
    """A picture on the page. Without a `uri` it is not there, and `why` says what to put in its place."""

    uri: str | None
    why: str
    width: int
    height: int
    tiny: bool
    seed: int | None = None


class Gallery:
    """Makes thumbnails until the page's budget is spent."""

    def __init__(self, pictures: int, budget: int = BUDGET) -> None:
        self.edge = next((edge for most, edge in EDGES if pictures <= most), EDGES[-1][1])
        self.left = budget

    def show(self, path: Path | None, seed: int | None = None, *, sha256: str | None = None) -> Shown:
        """Never raises for a picture that is missing or broken: the page says so in its place.

        With `sha256` a file of other content is missing: a manifest from somebody else may name any file.
        """
        if path is None or not os.path.isfile(path):  # Path.is_file raises where a folder may not be entered
            return absent("missing", seed)
        try:
            if sha256 is not None and file_hash(path) != sha256:
                return absent("missing", seed)
            if self.left <= 0:
                return absent("left out", seed)
            shown = _thumbnail(path, self.edge, seed)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
            return absent("unreadable", seed)
        self.left -= len(shown.uri or "")
        return shown


def absent(why: str, seed: int | None) -> Shown:
    """What stands in the place of a picture that is not there."""
    return Shown(None, why, 1, 1, False, seed)


def _thumbnail(path: Path, edge: int, seed: int | None) -> Shown:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # damaged EXIF: the picture is shown all the same
        with Image.open(path) as opened:
            opened.draft("RGB", (2 * edge, 2 * edge))
            picture = _flat(ImageOps.exif_transpose(opened))
    tiny = max(picture.size) <= TINY
    if not tiny:
        picture.thumbnail((edge, edge), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, **({"format": "PNG"} if tiny else {"format": "JPEG", "quality": 84}), optimize=True)
    kind = "png" if tiny else "jpeg"
    uri = f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
    return Shown(uri, "", *picture.size, tiny, seed)


def _flat(picture: Image.Image) -> Image.Image:
    """Without transparency: on white."""
    if not picture.has_transparency_data:
        return picture.convert("RGB")
    picture = picture.convert("RGBA")
    white = Image.new("RGBA", picture.size, "white")
    return Image.alpha_composite(white, picture).convert("RGB")


def inside(folder: Path, path: str) -> Path | None:
    """A file of the run, or None for a path that leaves its folder."""
    found = (folder / path).resolve()
    return found if found.is_relative_to(folder.resolve()) else None


def pairs(pictures: list[Json], word: str | None) -> list[tuple[Json | None, Json | None, list[tuple[Any, Any]]]]:
    """The samples of a word as (first before, first after, [(before, after) at each seed]) for each prompt.

    The prompts differ, since one says the initial text where the other has the word; both were drawn in the same
    order, and so they are matched by it. None stands where one side is missing.
    """
    sides = [_by_prompt([p for p in pictures if p["when"] == when and p.get("word") == word]) for when in _WHEN]
    found = []
    for before, after in zip_longest(*sides, fillvalue={}):
        seeds = list(dict.fromkeys([*before, *after]))
        rows = [(before.get(seed), after.get(seed)) for seed in seeds]
        found.append((next(iter(before.values()), None), next(iter(after.values()), None), rows))
    return found


_WHEN = ("before", "after")


def _by_prompt(pictures: list[Json]) -> list[dict[Any, Json]]:
    """Seed to picture for each prompt. Two words may have one initial text: a seed that comes again begins anew."""
    prompts: list[dict[Any, Json]] = []
    last = None
    for picture in pictures:
        if not prompts or picture["prompt"] != last or picture.get("seed") in prompts[-1]:
            prompts.append({})
        last = picture["prompt"]
        prompts[-1][picture.get("seed")] = picture
    return prompts


def training_pictures(manifest: Json, folder: Path) -> dict[str, Path | None]:
    """Every training picture of the manifest and where it lies now, if it does.

    Their paths start at the recipe's folder, which the manifest does not name: it is a parent of a concept's pictures.
    """
    recipe = manifest.get("recipe") or {}
    concepts = [Path(str(concept.get("images"))) for concept in recipe.get("concept") or [] if concept.get("images")]
    homes = list(dict.fromkeys([folder, *(home for images in concepts for home in (images, *images.parents))]))
    found: dict[str, Path | None] = {}
    for name in (manifest.get("data") or {}).get("files") or {}:
        if Path(name).suffix.lower() in SUFFIXES:
            home = next((home for home in homes if os.path.isfile(home / name)), None)
            found[name] = home / name if home else None
            if home:  # the next one is likely to lie there too
                homes.remove(home)
                homes.insert(0, home)
    return found


COLUMNS = 10  # moments that are shown; of more, evenly spread ones, the first and the last among them
ROWS = 12
STRIP_BUDGET = 1_000_000  # characters of the pictures' data URIs


def through_time(metrics: list[Json], folder: Path) -> Json:
    """`rows` of pictures by prompt and seed, each with `shots` (label, picture); `left` counts what is not shown.

    The lines of the metrics name the pictures (`pictures`: path, prompt, seed), so that a run can be followed.
    """
    lines = [line for line in metrics if line.get("pictures")]
    several = len({line.get("stage") for line in lines}) > 1
    chosen = _spread(lines, COLUMNS)
    rows: dict[tuple[str, int | None], list[tuple[str, Json]]] = {}
    for line in chosen:
        label = f"stage {line['stage']}, step {line['step']:,}" if several else f"step {line['step']:,}"
        for picture in line["pictures"]:
            rows.setdefault((picture["prompt"], picture.get("seed")), []).append((label, picture))
    shown = list(rows.items())[:ROWS]
    gallery = Gallery(sum(len(shots) for _, shots in shown), STRIP_BUDGET)
    made = []
    for (prompt, seed), shots in shown:
        drawn = [(label, gallery.show(inside(folder, picture["path"]))) for label, picture in shots]
        made.append({"prompt": prompt, "seed": seed, "shots": drawn})
    return {"rows": made, "moments": len(chosen), "all": len(lines), "left": len(rows) - len(shown)}


def _spread(lines: list[Json], most: int) -> list[Json]:
    if len(lines) <= most:
        return lines
    return [lines[round(n * (len(lines) - 1) / (most - 1))] for n in range(most)]
