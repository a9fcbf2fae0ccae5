"""Families of models as data: which text encoders one has, how wide they are, where a diffusers pipeline keeps them.

A new family is a JSON file in this folder; code never asks for a family by name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from os import listdir
from pathlib import Path
from typing import Any, NamedTuple


class EncoderSpec(NamedTuple):
    """One text encoder of a family: key in files, width of its vectors, attributes of the diffusers pipeline.

    `length` is how many tokens the pipeline gives it, where that is fewer than its tokenizer says, and `special` how
    many of them are not the prompt's: begin and end tokens, a chat template, a system prompt. `float16`: it computes
    in float16 without overflow. `last_state` is the last hidden state that the pipeline uses, where it is not the last
    of all: an index, negative from the end. `output` is the index of the one whose vectors an output embedding of
    OneTrainer replaces (-1: the last, as the encoder returns it), None where it trains none. `unknown_in` is a second
    tokenizer that reads the same prompts for a part without vectors of embeddings: it gets its unknown token for each.
    """

    key: str
    width: int
    module: str
    tokenizer: str
    length: int | None = None
    special: int = 2
    float16: bool = True
    last_state: int | None = None
    output: int | None = None
    unknown_in: str = ""


class CheckpointPart(NamedTuple):
    """Where a checkpoint file has one model of the pipeline: its layout and how the names of its tensors begin.

    `own_projection` is false for a CLIP encoder whose projection programs take for none, whatever the file says.
    """

    layout: str
    prefix: str
    own_projection: bool = True


class ImageEncoderSpec(NamedTuple):
    """The image encoder of a family whose pipeline has no VAE: the name of its file, and a hub id that has it."""

    file: str
    example: str


class DecoderSpec(NamedTuple):
    """The diffusers pipeline that draws images of what a family's own pipeline makes, and the hub id of one."""

    pipeline: str
    example: str


class Signs(NamedTuple):
    """How a LoRA of other programs shows its family.

    `architectures`: starts of modelspec.architecture (lower case, separated by `-`); `base_models`: starts of
    ss_base_model_version. `blocks` is a regular expression for names of blocks (empty: none), searched in all names,
    each after a line break: `\\n` is found faster than `^`. It counts only if a module of the denoiser has one of
    `widths` as input, where there are any, and if `without` (another expression: what only similar models have) is not
    found. `double` and `single` are how many blocks of these kinds the model has (0: not known), the most where its
    sizes differ. A family that is `like` another one in all this is only found by its metadata.
    """

    architectures: tuple[str, ...]
    base_models: tuple[str, ...]
    blocks: str
    widths: tuple[int, ...] = ()
    without: str = ""
    double: int = 0
    single: int = 0
    like: str = ""


@dataclass(frozen=True, eq=False, repr=False)
class Family:
    """What an embedding, a LoRA or a training step needs to know of a kind of model.

    `denoiser_kind` is empty for a family whose files are only converted, not trained. `denoiser_width` is the key of
    the denoiser's config that has the width of the text it attends to, `cross_attention` its value.
    `step_activations_mib` is what the denoiser keeps for the backward pass of one training step with one image of
    `resolution`, embeddings only, in a 16-bit format, in MiB. `example` is the hub id of a well-known model,
    `clip_skip` whether programs can use an earlier layer of its text encoder, `prompt_chunks` whether they encode long
    prompts in chunks of 75 tokens, as training can too, `common` whether files for it are common
    (where a width fits several families). `checkpoint` says how one file holds the whole model, by attribute of the
    pipeline; it is empty where we write no such file. `objective` is what its models are trained on: `diffusion`,
    `flow` (flow matching) or `cosine` (diffusion at any time between 0 and 1), `float16` whether the denoiser computes
    in float16 without overflow, `packed` the side of the square of latents that the pipeline packs into one (2: the
    denoiser takes four times their channels). `draw_options` are arguments that its pipeline is always called with
    to draw, and `guidance_argument` is the one for the guidance. `predicting` has what differs for models that do not
    predict what the family's example does, by their scheduler's `prediction_type`. `modular`: the pipeline is one of
    diffusers' modular ones. `packages` are Python packages that the denoiser needs, by the key of its config that says
    so.
    `template` is the shipped recipe that `pivotune new FAMILY` copies.
    `image_encoder` and `decoder` are the other models of a family whose pipeline neither encodes nor draws images.
    """

    name: str
    title: str
    encoders: tuple[EncoderSpec, ...]
    pipeline: str
    denoiser_kind: str
    denoiser_module: str
    denoiser_width: str
    resolution: int
    modelspec: str
    base_model_version: str
    lora_prefixes: dict[str, str]
    cross_attention: int
    signs: Signs
    objective: str = "diffusion"
    float16: bool = True
    packed: int = 1
    image_encoder: ImageEncoderSpec | None = None
    decoder: DecoderSpec | None = None
    step_activations_mib: float = 0.0
    example: str = ""
    clip_skip: bool = False
    prompt_chunks: bool = False
    common: bool = True
    draw_options: dict[str, Any] = field(default_factory=dict)
    guidance_argument: str = "guidance_scale"
    checkpoint: dict[str, CheckpointPart] = field(default_factory=dict)
    predicting: dict[str, dict[str, Any]] = field(default_factory=dict)
    modular: bool = False
    packages: dict[str, str] = field(default_factory=dict)
    template: str = ""

    @cached_property
    def widths(self) -> dict[str, int]:
        """Encoder key to width of one vector."""
        return {encoder.key: encoder.width for encoder in self.encoders}

    def of_prediction(self, kind: str | None) -> Family:
        """The family as it is for a model that predicts this (`epsilon`, `v_prediction`)."""
        return replace(self, **self.predicting.get(kind or "", {}))


def families() -> dict[str, Family]:
    """The families that can be trained, by name."""
    return {name: family for name, family in all_families().items() if family.denoiser_kind}


@cache
def all_families() -> dict[str, Family]:
    """All families whose files can be converted, by name."""
    folder = Path(__file__).parent
    loaded = [_family(json.loads((folder / f"{name}.json").read_text("utf-8"))) for name in family_names()]
    return {family.name: family for family in loaded}


@cache
def family_names() -> tuple[str, ...]:
    """The names of all families, which are those of their files."""
    files = sorted(listdir(Path(__file__).parent))
    return tuple(file.removesuffix(".json") for file in files if file.endswith(".json"))


def possible_families(widths: Mapping[str, int]) -> list[str]:
    """Families that have all these encoders (key to width), common ones with the fewest others first."""
    fitting = [family for family in all_families().values() if widths.items() <= family.widths.items()]
    return [family.name for family in sorted(fitting, key=lambda family: (not family.common, len(family.encoders)))]


def _family(data: dict) -> Family:
    denoiser = data.pop("denoiser")
    encoders = tuple(EncoderSpec(**encoder) for encoder in data.pop("encoders"))
    signs = data.pop("signs")
    defaults: dict[str, Any] = {"objective": "diffusion", "float16": True, "packed": 1}
    about = {key: denoiser.get(key, default) for key, default in defaults.items()}
    plain: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in signs.items()}
    data["signs"] = Signs(**plain)
    data["checkpoint"] = {name: CheckpointPart(**part) for name, part in data.get("checkpoint", {}).items()}
    for key, kind in (("image_encoder", ImageEncoderSpec), ("decoder", DecoderSpec)):
        data[key] = kind(**data[key]) if key in data else None
    about |= {f"denoiser_{key}": denoiser.get(key, "") for key in ("kind", "module", "width")}
    return Family(encoders=encoders, **about, **data)
