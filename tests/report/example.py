"""A made-up run, so that the report can be tried without running one."""

from __future__ import annotations

import hashlib
import json
import math
import random
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

Json = dict[str, Any]

NORMS = {
    "clip_l": {"median": 0.39, "mean": 0.386, "low": 0.34, "high": 0.43},
    "clip_g": {"median": 0.61, "mean": 0.6, "low": 0.44, "high": 0.74},
}
VERSIONS = {"python": "3.11.2", "torch": "2.13.0", "diffusers": "0.42.1", "transformers": "5.23.0", "peft": "0.21.2"}
DEVICE = {"device": "cpu", "device_name": "x86_64", "threads": 2, "deterministic": True}
ENVIRONMENT: Json = {**VERSIONS, "safetensors": "0.8.0", "platform": "Linux-6.1-x86_64", **DEVICE}
WIDTHS = {"clip_l": 768, "clip_g": 1280}


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def embedding(placeholder: str, encoders: tuple[str, ...] = ("clip_l",), vectors: int = 2, **changes: Any) -> Json:
    """One embedding; its numbers are made from its name."""
    rng = random.Random(placeholder.encode("utf-8", "surrogatepass"))
    made: Json = {}
    for key in encoders:
        usual = NORMS[key]["median"]
        made[key] = {
            "tokens": ["ring</w>", *["*</w>"] * (vectors - 1)],
            "kept": 1,
            "cut": [],
            "padded": vectors - 1,
            "norm_before": [usual * rng.uniform(0.8, 1.1) for _ in range(vectors)],
            "norm_after": [usual] * vectors,
            "distance": [rng.uniform(0.1, 0.5) for _ in range(vectors)],
            "cosine_to_start": [rng.uniform(0.4, 0.9) for _ in range(vectors)],
            "nearest": [
                [[piece, 0.62 - 0.07 * n] for n, piece in enumerate(("ring</w>", "teal</w>", "circle</w>", "tur"))]
                for _ in range(vectors)
            ],
        }
    start = {"placeholder": placeholder, "initial_text": "ring", "train": True, "stopped_at": None}
    return {**start, "encoders": made, **changes}


def manifest(embeddings: list[Json] | None = None, **changes: Any) -> Json:
    """A finished run of the quick start's kind."""
    embeddings = [embedding("<emblem>")] if embeddings is None else embeddings
    first = embeddings[0]["placeholder"] if embeddings else "ring"
    encoders = dict.fromkeys(key for w in embeddings for key in w["encoders"])
    kinds = {"tokenize": 0.03, "inject": 0.1, "train": 55.2, "rescale": 0.02, "export": 0.4, "sample": 9.1}
    options: Json = {"train": {"steps": 400, "learning_rate": 0.005, "batch_size": 4}, "rescale": {"to": "median"}}
    made: Json = {
        "pivotune": "0.1.0",
        "name": "emblem",
        "recipe": {
            "name": "emblem",
            "seed": 7,
            "stage": [{"kind": kind, **options.get(kind, {})} for kind in kinds if kind != "sample"],
        },
        "recipe_sha256": sha256("recipe"),
        "status": "finished",
        "error": None,
        "started": "2026-01-31T12:00:00+00:00",
        "seconds": sum(kinds.values()),
        "environment": ENVIRONMENT,
        "model": {
            "base": "micro",
            "family": "sd1",
            "path": "recipes/micro",
            "sha256": {f"{part}/model.safetensors": sha256(part) for part in ("text_encoder", "unet", "vae")},
            "dtype": "float32",
            "encoders": {k: {"width": WIDTHS[k], "vocabulary": 49408, "norm": NORMS[k]} for k in encoders},
        },
        "data": {
            "images": 10,
            "concepts": [10],
            "files": {f"images/{n}.{end}": sha256(f"{n}.{end}") for n in range(10) for end in ("png", "txt")},
            "captions": [f"a {first} on a {colour} background" for colour in ("green", "pink")],
            "coverage": {w["placeholder"]: 1.0 for w in embeddings},
        },
        "embeddings": embeddings,
        "stages": [stage(kind, seconds) for kind, seconds in kinds.items()],
        "proofs": {
            "vocabulary_unchanged": dict.fromkeys(encoders, True),
            "gradient_reached": {w["placeholder"]: True for w in embeddings},
            "exports_verified": 3 * len(embeddings),
            "exports_declared": 3 * len(embeddings),
            "ejected_clean": True,
        },
        "artefacts": [artefact(w["placeholder"], p, put) for w in embeddings for p, put in PROGRAMS.items()],
        "images": [],
        "warnings": [],
    }
    return {**made, **changes}


def stage(kind: str, seconds: float) -> Json:
    return {"kind": kind, "seconds": seconds, "inputs": ["embeddings"], "outputs": ["embeddings"], "notes": []}


PROGRAMS = {"a1111": "embeddings/", "comfyui": "models/embeddings/", "diffusers": "anywhere: load_textual_inversion"}


def artefact(placeholder: str, program: str, put_in: str) -> Json:
    name = "".join(c for c in placeholder if c.isalnum())
    trigger = f"embedding:{name}" if program == "comfyui" else placeholder
    return {
        "path": f"export/{program}/{name}.safetensors", "sha256": sha256(name + program), "bytes": 6324,
        "kind": "embedding", "program": program, "dialect": "standalone", "trigger": trigger, "put_in": put_in,
        "embedding": placeholder,
    }  # fmt: skip


def metrics(made: Json, steps: int = 400, every: int = 5) -> list[Json]:
    """A noisy loss that falls, and vectors that wander off and come to rest."""
    rng = random.Random(1)
    lines: list[Json] = []
    for step in range(1, steps + 1):
        rest = 1 - math.exp(-step / (steps / 4))
        loss = 0.05 * rng.lognormvariate(0, 0.5) + 0.06 * (1 - rest)
        line: Json = {"stage": 2, "step": step, "loss": loss, "seconds": 0.13 * step, "embeddings": {}}
        line |= {"learning_rate": {"embeddings": 0.005}, "gradient_norm": rng.lognormvariate(-4, 0.4)}
        if step == 1 or step % every == 0:
            for trained in made["embeddings"]:
                measured = line["embeddings"][trained["placeholder"]] = {}
                for key, e in trained["encoders"].items():
                    ends = zip(e["norm_before"], e["norm_after"], strict=True)
                    norms = [b + (1.1 * a - b) * rest + rng.gauss(0, 0.002) for b, a in ends]
                    measured[key] = {"norm": norms, "distance": [way * rest for way in e["distance"]]}
        lines.append(line)
    return lines


def write_run(folder: Path, made: Json, lines: list[Json] | None = None, edge: int = 64, seeds: int = 4) -> Path:
    """The run's folder with training images, and samples of every embedding that the manifest does not already list."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "images").mkdir(exist_ok=True)
    rng = random.Random(3)
    for name in (made.get("data") or {}).get("files", {}):
        if name.endswith(".png"):
            ring(folder / name, edge, (15, 150, 160), rng)
            made["data"]["files"][name] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    if not made["images"]:
        made["images"] = [
            _sample(folder, n, made["embeddings"][n], when, seed, edge)
            for n in range(len(made["embeddings"]))
            for when in ("before", "after")
            for seed in range(seeds)
        ]
    (folder / "manifest.json").write_text(json.dumps(made), encoding="utf-8")
    lines = metrics(made) if lines is None else lines
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return folder


def _sample(folder: Path, n: int, trained: Json, when: str, seed: int, edge: int) -> Json:
    """Before: rings of any colour; after: teal ones."""
    path = f"images/{n}-{when}-{seed}.png"
    rng = random.Random(f"{n} {seed}")
    colour = (20, 145, 158) if when == "after" else tuple(rng.randrange(30, 230) for _ in range(3))
    ring(folder / path, edge, colour, random.Random(seed))
    text = trained["initial_text"] if when == "before" else trained["placeholder"]
    return {"path": path, "when": when, "prompt": f"a {text}", "embedding": trained["placeholder"], "seed": seed}


def ring(path: Path, edge: int, colour: tuple[int, ...], rng: random.Random) -> None:
    """A ring at a random place on a pale ground, drawn large and made small."""
    ground = rng.choice([(248, 248, 248), (165, 220, 165), (250, 200, 222), (150, 190, 245), (250, 232, 150)])
    image = Image.new("RGB", (256, 256), ground)
    x, y, r = rng.uniform(105, 151), rng.uniform(105, 151), rng.uniform(60, 92)
    ImageDraw.Draw(image).ellipse((x - r, y - r, x + r, y + r), outline=colour, width=int(0.45 * r))
    image.resize((edge, edge), Image.Resampling.LANCZOS).save(path)
