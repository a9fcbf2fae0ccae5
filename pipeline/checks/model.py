"""Checks of the model: does it exist, and which family is it? Reads small JSON files only, no weights."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

from ...converters import safetensors_file
from ...converters.errors import ConvertError
from ...converters.families import Family, families
from ..errors import StageError
from ..models.channels import check_channels
from ..models.checkpoint import checkpoint_family, tensor_shapes
from ..models.companions import stated_image_encoder
from ..models.family import family_in, local_path, no_chunks, no_single_file, part_config
from ..models.index import INDEX, has_index
from ..models.modular import package_problem
from ..models.parts import lack_problem, local_part, missing_parts, stated_parts
from ..models.received import check_model_folder
from ..recipe.defaults import DENOISER, NO_GGUF, NO_NF4, QUANTIZED
from ..recipe.load import CHECKPOINTS
from ..recipe.model import ModelSpec, Recipe
from ..recipe.options import TrainOptions
from ..recipe.problem import Finding, KeyPath
from ..text import count_of, did_you_mean, did_you_mean_path, nearest

BASE = ("model", "base")
DENOISER_FILES = (".safetensors", ".gguf")


def model_findings(spec: ModelSpec) -> Iterator[Finding]:
    """Checks of `[model]` without loading it."""
    path = local_path(spec)
    if path is None:
        if _is_hub_id(spec.base):
            named = families().get(spec.family or "")
            if named is not None and (problem := package_problem(named, None)):
                yield Finding(BASE, problem, "warning")
            return
        hint = "; did you mean 'micro'?" if nearest(spec.base, ["micro"]) else ""
        if spec.base.lower() in families():
            hint = f'; for this family, for example: base = "{families()[spec.base.lower()].example}"'
        yield Finding(BASE, f"'{spec.base}' is not a file, a folder or a hub id (owner/name){hint}")
    elif not os.path.exists(path):
        yield Finding(BASE, f"{path} does not exist{did_you_mean_path(path)}")
    elif path.is_dir() and not has_index(path):
        yield Finding(BASE, f"{path} is not a diffusers folder: no {INDEX}")
    elif path.is_file():
        yield from _checkpoint(spec, path)
    elif not path.is_dir():
        yield Finding(BASE, f"{path} is neither a regular file nor a folder")
    else:
        try:
            check_model_folder(path)
            check_channels(spec, path)
            family = family_in(spec, path)
            if problem := package_problem(family, part_config(path, family.denoiser_module)):
                yield Finding(BASE, problem)
        except StageError as error:
            yield Finding(("model", "family" if spec.family else "base"), str(error))


def family_findings(spec: ModelSpec, family: Family | None) -> Iterator[Finding]:
    """Checks of clip_skip and prompt_chunks, and of a dtype in which a text encoder overflows."""
    overflowing = [one.key for one in family.encoders if not one.float16] if family is not None else []
    if family is not None and not family.float16:
        overflowing.append(f"the denoiser of {family.title}")
    if spec.dtype == "float16" and overflowing:
        yield Finding(("model", "dtype"), f"{overflowing[0]} overflows in float16; use bfloat16")
    if spec.clip_skip > 1 and family is not None and not family.clip_skip:
        yield Finding(("model", "clip_skip"), f"clip_skip is not supported for {family.title}; remove it")
    if spec.prompt_chunks > 1 and family is not None and not family.prompt_chunks:
        yield Finding(("model", "prompt_chunks"), no_chunks(family))


def weight_findings(recipe: Recipe, family: Family | None) -> Iterator[Finding]:
    """Checks of `model.weights`: parts that there are, packages, and what cannot train packed layers."""
    weights, where = recipe.model.weights, ("model", "weights")
    yield from _unknown_parts(where, weights, family)
    for part, kind in weights.items():
        if (part == "vae") != (kind not in QUANTIZED):
            packed = f"{', '.join(QUANTIZED)}, or model.dtype for all parts"
            fit = "a dtype (float32, float16, bfloat16)" if part == "vae" else packed
            yield Finding((*where, part), f"{kind} is not for {part}; use {fit}")
        if kind == "nf4" and find_spec("bitsandbytes") is None:
            yield Finding((*where, part), NO_NF4)
    parts = sorted(part for part in weights if part != "vae")
    if str(recipe.model.denoiser).lower().endswith(".gguf"):
        if DENOISER in weights:
            yield Finding((*where, DENOISER), "the weights of a .gguf file are packed already; remove it")
        parts = sorted({*parts, DENOISER})
    for index, options in recipe.stages_with(TrainOptions) if parts else ():
        for number, fixed in enumerate(options.lora):
            if not fixed.train and not set(parts).isdisjoint(fixed.parts):
                text = "a LoRA with train = false is added to the weights, which are packed"
                yield Finding(("stage", index, "lora", number), f"{text}; remove one of them for this part")
        for name, number, table in options.weight_tables:
            key_path = ("stage", index, name, number)
            if name == "finetune":
                text = f"a fine-tune exports the whole model, and weights of {', '.join(parts)} are packed"
                yield Finding(key_path, f"{text}; train a LoRA, or use a model that is not packed")
            elif getattr(table, "dora", False) and not set(parts).isdisjoint(table.parts):
                text = "dora needs the norms of weights that are packed"
                yield Finding((*key_path, "dora"), f"{text}; set it to false")


def _unknown_parts(where: KeyPath, parts: Iterable[str], family: Family | None) -> Iterator[Finding]:
    if family is None:
        return
    known = [DENOISER, *family.widths, "vae"]
    for part in parts:
        if part not in known:
            yield Finding((*where, part), f"{family.title} has no part '{part}'{did_you_mean(part, known)}")


def offload_findings(recipe: Recipe, family: Family | None) -> Iterator[Finding]:
    """Checks of `model.offload`: parts that there are, and what needs all weights on the device."""
    offload = recipe.model.offload
    yield from _unknown_parts(("model", "offload"), offload, family)
    for index, options in recipe.stages_with(TrainOptions) if offload else ():
        if options.compile and DENOISER in offload:
            yield Finding(("stage", index, "compile"), "compile needs all of the denoiser on the device; remove one of "
                          "compile and model.offload")  # fmt: skip
        for number, table in enumerate(options.finetune):
            for part in [part for part in table.parts if part in offload]:
                text = f"model.offload keeps blocks of {part} in host memory, where they cannot be trained"
                yield Finding(("stage", index, "finetune", number), f"{text}; remove it, or train a LoRA")


def companion_findings(spec: ModelSpec, family: Family | None) -> Iterator[Finding]:
    """Checks of the image encoder and the decoder, of families that have them beside their pipeline."""
    if family is None:
        return
    for key, about in (("image_encoder", family.image_encoder), ("decoder", family.decoder)):
        named = getattr(spec, key)
        if named is not None and about is None:
            yield Finding(("model", key), f"{key} does not apply to {family.title}; remove it")
        elif named is not None and not Path(named).is_absolute() and not _is_hub_id(named):
            yield Finding(("model", key), f"'{named}' is not a file, a folder or a hub id (owner/name)")
    if family.decoder is not None and spec.decoder is not None and Path(spec.decoder).is_absolute():
        index = Path(spec.decoder) / "model_index.json"
        if not index.is_file():
            yield Finding(("model", "decoder"), f"{spec.decoder} is not a diffusers folder: no model_index.json")
    path = local_path(spec)
    if family.image_encoder is None or (path is not None and path.is_file()):  # a file is refused anyway
        return
    try:
        stated_image_encoder(spec, family.image_encoder)
    except StageError as error:
        yield Finding(("model", "base" if spec.image_encoder is None else "image_encoder"), str(error))
    from ..effnet import torchvision_problem  # imports torch

    problem = torchvision_problem()
    if problem is not None:
        yield Finding(("model",), f"the image encoder of {family.title} needs torchvision: {problem}")


def _denoiser_findings(spec: ModelSpec, path: Path) -> Iterator[Finding]:
    """Checks of `model.denoiser`."""
    where, base = ("model", "denoiser"), local_path(spec)
    if not path.exists():
        yield Finding(where, f"{path} does not exist{did_you_mean_path(path)}")
    elif path.is_file() and path.suffix.lower() not in DENOISER_FILES:
        yield Finding(where, f"{path.name} is not a file of a denoiser ({' or '.join(DENOISER_FILES)})")
    elif path.suffix.lower() == ".gguf" and find_spec("gguf") is None:
        yield Finding(where, NO_GGUF)
    elif path.suffix.lower() == ".gguf" and path.is_file() and not _is_gguf(path):
        yield Finding(where, f"{path.name} is not a GGUF file, whatever its name says; download it again")
    elif path.suffix.lower() == ".safetensors":
        try:
            safetensors_file.read(path, cached=0)
        except ConvertError as error:
            yield Finding(where, str(error))
    if base is not None and base.is_file():
        yield Finding(where, "base is a single file, which has its own; set base to a diffusers folder or hub id")


def _is_gguf(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(4) == b"GGUF"
    except OSError:
        return False


def part_findings(spec: ModelSpec, family: Family | None) -> Iterator[Finding]:
    """Checks of the parts that the recipe takes from elsewhere, and of those that a single file lacks."""
    if spec.denoiser is not None:
        yield from _denoiser_findings(spec, Path(spec.denoiser))
    if family is None:
        return
    for name, text in stated_parts(spec).items():
        parts = {one.module for one in family.encoders} | ({"vae"} if family.image_encoder is None else set())
        if name not in parts:
            yield Finding(("model", name), f"{name} does not apply to {family.title}; remove it")
        elif not Path(text).is_absolute():
            if not _is_hub_id(text):
                yield Finding(("model", name), f"'{text}' is not a file, a folder or a hub id (owner/name)")
        else:
            try:
                local_part(name, Path(text))
            except StageError as error:
                yield Finding(("model", name), str(error))
    path = local_path(spec)
    names = list(tensor_shapes(path)) if path is not None and path.is_file() else []
    if path is not None and names and family.checkpoint:
        for name, folder in missing_parts(spec, path, family, names):
            if folder is None:
                yield Finding(BASE, lack_problem(path, family, name))


def drawing_findings(recipe: Recipe, family: Family | None, *, prompts: bool) -> Iterator[Finding]:
    """Images that the recipe asks for, of a family that draws only with a decoder; `prompts`: it has sample prompts."""
    if family is None or family.decoder is None or recipe.model.decoder is not None:
        return
    text = f"{family.title} draws images only with its decoder; set model.decoder, or remove"
    if prompts:
        yield Finding(("samples", "prompts"), f"{text} samples.prompts")
    for number, concept in enumerate(recipe.concepts):
        if concept.generate is not None:
            yield Finding(("concept", number, "generate"), f"{text} generate")
    for index, options in recipe.stages_with(TrainOptions):
        if options.watch is not None and options.watch.sample_every is not None:
            yield Finding(("stage", index, "watch", "sample_every"), f"{text} sample_every")


def sample_findings(recipe: Recipe, family: Family | None) -> Iterator[Finding]:
    """Seeds of sample images that are not one for each prompt, and a scheduler for another kind of model."""
    samples = recipe.samples
    if samples.seeds is not None and len(samples.seeds) != len(samples.prompts):
        counts = f"{count_of(len(samples.seeds), 'seed')} for {count_of(len(samples.prompts), 'prompt')}"
        yield Finding(("samples", "seeds"), f"{counts}; give one for each prompt")
    if samples.scheduler is not None and family is not None and family.objective != "diffusion":
        text = f"schedulers are for diffusion models; {family.title} has its own; remove it"
        yield Finding(("samples", "scheduler"), text)


def _checkpoint(spec: ModelSpec, path: Path) -> Iterator[Finding]:
    if path.suffix.lower() not in CHECKPOINTS:
        yield Finding(BASE, f"{path} is not a checkpoint ({' or '.join(CHECKPOINTS)})")
    family = spec.family or checkpoint_family(path)
    if family is None:
        known = ", ".join(families())
        yield Finding(BASE, f"the tensors of {path.name} do not tell its family: set family = one of {known}")
    elif spec.family in families() and (why := no_single_file(families()[spec.family])):
        yield Finding(BASE, why)
        return
    try:
        check_channels(replace(spec, family=family), path)
    except StageError as error:
        yield Finding(BASE, str(error))
    if spec.config is None:
        text = (
            "without config, tokenizers and configuration are downloaded; set config = a diffusers folder of the family"
        )
        yield Finding(BASE, text, "warning")
    elif Path(spec.config).is_absolute():
        try:
            if not Path(spec.config).is_dir():
                raise StageError(f"{spec.config} is not a folder")
            check_model_folder(Path(spec.config))
        except (StageError, OSError) as error:
            yield Finding(("model", "config"), str(error))


def _is_hub_id(text: str) -> bool:
    owner, slash, name = text.partition("/")
    plain = (owner + name).replace("-", "").replace("_", "").replace(".", "")
    return bool(slash and owner and name) and plain.isascii() and plain.isalnum()
