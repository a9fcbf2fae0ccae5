"""Writes report.html: one self-contained page that shows what a run trained and how."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
from jinja2 import ChainableUndefined, Environment, FileSystemLoader
from markupsafe import Markup

from ...converters.disk import replace
from ..lock import is_locked
from ..records import METRICS, REPORT, Json, read_manifest, read_metrics
from ..text import count_of
from . import embeddings, facts
from .curves import SERIES, SINGLE, Array, Line, column, noisy_curve, positions, vector_curves, vector_lines
from .images import Gallery, Shown, absent, inside, pairs, through_time, training_images

EMBEDDINGS = 50  # shown in full; the others are folded away
STRIP = 12  # training images of several embeddings together, for manifests that do not list them by embedding
LINES = 3000  # of a folded table
RECIPE = 60_000  # characters of the resolved recipe


def write_report(folder: Path, refresh: int | None = None, warn: Callable[[str], None] | None = None) -> Path:
    """Write `folder`/report.html from the run's manifest, metrics and images; return its path.

    Works on a run in any state; the page names what is missing. Raises StageError for a folder without a readable
    manifest. The same folder gives the same bytes. With `refresh` an open page reloads after so many seconds. `warn` is
    called with what is wrong with the metrics.
    """
    manifest = read_manifest(folder)
    if manifest.get("status") == "finishing":  # only this page and the clean-up are left
        manifest["status"] = "finished"
    killed = manifest.get("status") == "running" and not is_locked(folder)
    metrics, unreadable = read_metrics(folder)
    problem = _metrics_problem(manifest, folder, len(metrics), unreadable)
    if warn is not None and problem:
        warn(problem)
    trained, asked = manifest.get("embeddings") or [], _asked(manifest)
    files, code = facts.files(manifest, folder)
    page = (
        _environment()
        .get_template("report.html.j2")
        .render(
            css=Markup((Path(__file__).parent / "report.css").read_text(encoding="utf-8")),
            m=manifest,
            state="killed" if killed else manifest.get("status"),
            refresh=refresh,
            asked=[embedding["placeholder"] for embedding in asked],
            warnings=[*(manifest.get("warnings") or []), *([problem] if problem else [])],
            facts=facts.facts(manifest, metrics),
            proofs=facts.proofs(manifest),
            files=files,
            fits=facts.fits(manifest),
            code=code,
            stages=facts.stages(manifest),
            recipe=facts.recipe_text(manifest, RECIPE),
            samples=_samples({**manifest, "embeddings": trained or asked}, folder),
            progress=through_time(metrics, folder),
            curves=_curves(manifest, metrics),
            embeddings=[_embedding(manifest, embedding) for embedding in trained[:EMBEDDINGS]],
            more=[_embedding(manifest, embedding) for embedding in trained[EMBEDDINGS:LINES]],
            shown=EMBEDDINGS,
            lines=LINES,
        )
    )
    return _write(folder, page)


def _metrics_problem(manifest: Json, folder: Path, steps: int, unreadable: int) -> str:
    """What is wrong with the metrics of a run, if anything: unreadable lines, or none of a stage that trained."""
    path = folder / METRICS
    if unreadable:
        return f"{METRICS}: left out of the curves: {count_of(unreadable, 'unreadable line')}"
    if path.is_symlink():
        return f"{METRICS}: is a link, which is not followed; the page has no curves"
    trained = any(stage.get("kind") == "train" for stage in manifest.get("stages") or [])
    if not steps and trained and manifest.get("status") == "finished":
        return f"{METRICS}: {'empty' if path.exists() else 'missing'}; the page has no curves"
    return ""


def _write(folder: Path, page: str) -> Path:
    """Replace the page; an interrupted write leaves the old one."""
    path = folder / REPORT
    scratch = folder / f".{REPORT}.{os.getpid()}"
    try:
        scratch.unlink(missing_ok=True)  # it may be a second name of a file elsewhere
        scratch.write_text(page, encoding="utf-8", errors="replace", newline="\n")
        replace(scratch, path)
    except BaseException:  # a full disk most of all
        scratch.unlink(missing_ok=True)
        raise
    return path


@cache
def _environment() -> Environment:
    """Made once per process: compiling the templates takes longer than rendering them."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=ChainableUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "count_of": count_of,
        "number": facts.number,
        "duration": facts.duration,
        "size": facts.size,
        "printable": embeddings.printable,
    }
    environment.globals["too_large"] = embeddings.TOO_LARGE
    return environment


def _asked(manifest: Json) -> list[Json]:
    """The embeddings that the recipe names, until the run has ended."""
    embeddings = (manifest.get("recipe") or {}).get("embedding") or []
    return [{"placeholder": embedding["placeholder"]} for embedding in embeddings if embedding.get("placeholder")]


def _embedding(manifest: Json, embedding: Json) -> Json:
    """An embedding with, for each text encoder, its rows and the scale of its norms."""
    encoders = []
    for key, encoder in (embedding.get("encoders") or {}).items():
        rows, usual = embeddings.rows(encoder), embeddings.usual(manifest, key)
        start, scale = embeddings.start_of(encoder), facts.norm_scale(rows, usual)
        excess = None if embeddings.rescaled(manifest) else embeddings.excessive_norm(rows, usual)
        encoders.append({"key": key, "rows": rows, "start": start, "usual": usual, "scale": scale, "excess": excess})
    fate = embeddings.fate(embedding, manifest.get("status") == "finished")
    return {**embedding, "fate": fate, "vectors": embeddings.vectors_of(embedding), "encoders": encoders}


def _samples(manifest: Json, folder: Path) -> list[Json]:
    """For each embedding: training images, and the rows of sample images before and after."""
    trained = [embedding["placeholder"] for embedding in manifest.get("embeddings") or []]
    drawn = manifest.get("images") or []
    others = dict.fromkeys(p.get("embedding") for p in drawn if p.get("embedding") not in set(trained))
    training, hashes = training_images(manifest, folder), (manifest.get("data") or {}).get("files") or {}
    gallery = Gallery(len(drawn) + min(12, len(training)))
    blocks: list[Json] = []
    if len(trained) > 1 and not any("images" in embedding for embedding in manifest["embeddings"]):
        strip = [gallery.show(path, sha256=hashes[name]) for name, path in list(training.items())[:STRIP]]
        blocks += [{"embedding": None, "training": strip, "of": len(training), "prompts": []}] if strip else []
    for embedding in [*trained[:EMBEDDINGS], *others]:
        prompts: list[Json] = []
        for before, after, rows in pairs(drawn, embedding):
            sides = [[_show(gallery, folder, row[side], row[1 - side]) for row in rows] for side in (0, 1)]
            prompts.append({"before": before, "after": after, "sides": sides})
        names = _trained_on(manifest, embedding, list(training))
        most = max(4, min(12, sum(len(prompt["sides"][1]) for prompt in prompts)))
        shown = [gallery.show(training[name], sha256=hashes[name]) for name in names[:most] if name in training]
        if prompts or shown:
            blocks.append({"embedding": embedding, "training": shown, "of": len(names), "prompts": prompts})
    return blocks


def _show(gallery: Gallery, folder: Path, image: Json | None, twin: Json | None) -> Shown:
    """The sample image, or why there is none, with the seed of its counterpart."""
    if image is None:
        return absent("not drawn", (twin or {}).get("seed"))
    return gallery.show(inside(folder, image["path"]), image.get("seed"))


def _trained_on(manifest: Json, embedding: str | None, every: list[str]) -> list[str]:
    """The embedding's own training images where the manifest names them; all of them for a single embedding."""
    trained = manifest.get("embeddings") or []
    own = next((w.get("images") for w in trained if w["placeholder"] == embedding), None)
    if own is not None:
        return list(own)
    return every if len(trained) == 1 else []


def _curves(manifest: Json, metrics: list[Json]) -> list[Json]:
    """Title, explanation, drawing and legend as (colour, label) of each curve."""
    if not metrics:
        return []
    x, borders = positions(metrics)
    made: list[Json] = [
        {
            "title": "Loss",
            "text": "Light: every step. Dark: running mean.",
            "svg": noisy_curve("loss", "Loss at every step", x, column(metrics, "loss"), borders),
        }
    ]
    made += _validation(metrics, x, borders)
    pull = column(metrics, "gradient_norm")
    if np.isfinite(pull).any():
        svg = noisy_curve("gradient", "Gradient norm at every step", x, pull, borders)
        text = "L2 norm of the gradient of all trained vectors together."
        made.append({"title": "Gradient", "text": text, "svg": svg})
    locality = column(metrics, "locality")
    if np.isfinite(locality).any():
        svg = noisy_curve("locality", "Difference to the base model", x, locality, borders)
        text = "Squared difference to the base model's predictions for prompts near the embeddings, before its weight."
        made.append({"title": "Locality", "text": text, "svg": svg})
    for what, title in (("norm", "Norm"), ("distance", "Distance from initialisation")):
        for n, (encoder, lines) in enumerate(vector_lines(metrics, x, what).items()):
            band = embeddings.usual(manifest, encoder) if what == "norm" else {}
            few = len(lines) <= SINGLE
            text = "L2 norm of each vector" if what == "norm" else "L2 distance of each vector from its initial value"
            if not few:
                text += f": range of {count_of(len(lines), 'vector')} and their median"
            text += "; shaded: usual range of the vocabulary, dashed: its median." if band else "."
            text += embeddings.ema_note(manifest)
            svg = vector_curves(f"{what}{n}", f"{title}, {encoder}", lines, borders, band)
            legend = [(i, line.label) for i, line in zip(range(len(SERIES)), lines, strict=False)] if few else []
            made.append({"title": title, "encoder": encoder, "text": text, "svg": svg, "legend": legend})
    return made


def _validation(metrics: list[Json], x: Array, borders: list[float]) -> list[Json]:
    """The curve of the held-out images' loss, where there is one."""
    losses = column(metrics, "validation")
    measured = np.isfinite(losses)
    if not measured.any():
        return []
    line = Line("validation", x[measured], losses[measured])
    svg = vector_curves("validation", "Loss of held-out images", [line], borders, {}, from_zero=False)
    best = int(np.argmin(line.y))
    where = f"Best: {line.y[best]:.4g} at step {line.x[best]:g}."
    text = f"Held-out images, always with the same noise and timesteps. {where}"
    return [{"title": "Validation loss", "text": text, "svg": svg}]


STAMPED = ("manifest.json", "metrics.jsonl")


def follow(folder: Path, every: int, show: Callable[[str], None], sleep: Callable[[float], None] = time.sleep) -> Path:
    """Update `folder`/report.html every `every` seconds, when something has changed, until the run ends.

    An open page reloads as often; the last one does not. Ctrl-C stops following, not the run. Raises StageError for a
    folder that holds no run.
    """
    seen: list[tuple[int, int]] = []
    try:
        while True:
            over, now = not _in_progress(folder), _stamps(folder)
            if over or now != seen:
                path, seen = write_report(folder, refresh=None if over else every), now
                show(f"{path} " + ("is complete" if over else "updated; the run is in progress"))
            if over:
                return path
            sleep(every)
    except KeyboardInterrupt:
        return write_report(folder)


def _in_progress(folder: Path) -> bool:
    return read_manifest(folder).get("status") == "running" and is_locked(folder)


def _stamps(folder: Path) -> list[tuple[int, int]]:
    """Times and sizes of the files that the page is made from."""
    found = [(folder / name).stat() for name in STAMPED if (folder / name).is_file()]
    return [(one.st_mtime_ns, one.st_size) for one in found]
