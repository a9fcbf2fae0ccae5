"""The model's examination: 500 images for captions it has not seen, judged twice, as shares."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from . import judge
from .captions import article, caption, describe
from .classifier import HEADS, build_classifier, classify, train_classifier
from .data import drawn
from .draw import Image, draw
from .grammar import BACKGROUNDS, COLOURS, Scene, distance, name_of, sample_scene
from .sample import GUIDANCE, STEPS, load, sample
from .train_unet import CAPTION_SETS

PARTS = ("text_encoder/model.safetensors", "unet/diffusion_pytorch_model.safetensors",
         "vae/diffusion_pytorch_model.safetensors")  # fmt: skip
ALL = {"shape", "texture", "colour", "second", "mark"}


def full_caption(scene: Scene) -> str:
    """Everything there is to say of a scene, but its size."""
    told = ALL - {"texture"} if scene.thing.texture == "plain" else ALL
    ground = name_of(scene.background, BACKGROUNDS)
    return article(f"a photo of a {' '.join(describe(scene.thing, told))} on a {ground} background")


def training_captions(scenes: int, sets: int) -> set[str]:
    """The captions that the denoiser saw, drawn again from their seeds."""
    rng = np.random.default_rng(5)
    seen = [sample_scene(rng) for _ in range(scenes)]
    texts = set()
    for number in range(sets):
        rng = np.random.default_rng(10 + number)
        texts |= {caption(scene, rng).text for scene in seen}
    return texts


def questions(count: int, seen: set[str], seed: int = 77) -> list[Scene]:
    """Scenes of named colours whose full caption is not among those seen, each caption once."""
    rng = np.random.default_rng(seed)
    chosen: dict[str, Scene] = {}
    while len(chosen) < count:
        scene = sample_scene(rng, free=0.0)
        if full_caption(scene) not in seen:
            chosen.setdefault(full_caption(scene), scene)
    return list(chosen.values())


def examine(folder: Path, work: Path, count: int = 500) -> tuple[dict[str, Any], list[Image]]:
    """The shares, and the images they were counted on. `work` keeps what does not depend on the model."""
    asked, network = prepared(work, count)
    images = list(sample(load(folder), [full_caption(scene) for scene in asked]))
    rng = np.random.default_rng(4)
    fresh = [sample_scene(rng, free=0.0) for _ in range(1000)]
    drawings = [draw(scene) for scene in fresh]
    result = {
        "images": count,
        "steps": STEPS,
        "guidance": GUIDANCE,
        "drawing": by_drawing(images, asked),
        "classifier": by_classifier(classify(network, images), asked),
        "classifier on fresh drawings": by_classifier(classify(network, drawings), fresh),
        "sha256": fingerprints(folder),
    }
    return result, images


def prepared(work: Path, count: int) -> tuple[list[Scene], nn.Module]:
    """What is asked, and the classifier; from the folder if an earlier exam left them there."""
    file = work / f"exam-{count}.pickle"
    if file.exists():
        with file.open("rb") as stream:  # written below, by ourselves
            asked, state = pickle.load(stream)
        network = build_classifier().eval()
        network.load_state_dict(state)
        return asked, network
    asked = questions(count, training_captions(20000, CAPTION_SETS))
    network = train_classifier(drawn(work, 8000, 1, free=0.5))
    with file.open("wb") as stream:
        pickle.dump((asked, network.state_dict()), stream)
    return asked, network


def by_drawing(images: list[Image], asked: list[Scene]) -> dict[str, float]:
    """Shares of images whose attribute fits best when it is drawn as asked, and the median distance."""
    right: dict[str, list[bool]] = {name: [] for name in ("shape", "texture", "colour", "background")}
    distances = []
    for image, scene in zip(images, asked, strict=True):
        thing = scene.thing
        white, black = COLOURS["white"], COLOURS["black"]
        other = thing.second or max(white, black, key=lambda colour: distance(colour, thing.colour))
        right["shape"].append(judge.nearest_shape(image, thing) == thing.shape)
        right["texture"].append(judge.nearest_texture(image, thing, other) == thing.texture)
        right["colour"].append(judge.colour_word(image, thing) == name_of(thing.colour, COLOURS))
        right["background"].append(judge.background_word(image) == name_of(scene.background, BACKGROUNDS))
        distances.append(judge.distance_to_drawing(image, scene))
    shares = {name: round(float(np.mean(values)), 3) for name, values in right.items()}
    hits = round(float(np.mean(np.array(distances) < judge.HIT)), 3)
    return {**shares, "hit": hits, "median distance": round(float(np.median(distances)), 1)}


def by_classifier(named: list[dict[str, str]], asked: list[Scene]) -> dict[str, float]:
    """Shares of images in which the network names what was asked for."""
    wanted = [
        {
            "shape": scene.thing.shape,
            "texture": scene.thing.texture,
            "colour": name_of(scene.thing.colour, COLOURS),
            "background": name_of(scene.background, BACKGROUNDS),
        }
        for scene in asked
    ]
    return {
        head: round(float(np.mean([a[head] == b[head] for a, b in zip(named, wanted, strict=True)])), 3)
        for head in HEADS
    }


def fingerprints(folder: Path) -> dict[str, str]:
    """The SHA-256 of each weight file."""
    return {part: hashlib.sha256((folder / part).read_bytes()).hexdigest() for part in PARTS}
