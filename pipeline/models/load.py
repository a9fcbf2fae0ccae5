"""Loads the model of a recipe, frozen, and names its parts."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from ...converters.families import EncoderSpec, Family, families
from ..embeddings.chunks import Chunks, split_into_chunks
from ..embeddings.injection import Encoder
from ..errors import StageError
from ..files import read_json, read_regular
from ..recipe.model import ModelSpec
from ..tensors import DTYPES
from ..torchvision_problem import hide_broken_torchvision
from ..vae import vae_scale
from .aligned import align, aligned_reading
from .channels import require_latent_channels
from .checkpoint import checkpoint_family
from .companions import find_image_encoder, read_decoder, read_image_encoder
from .family import choose_family, native_resolution, no_chunks, size_multiple, width_of
from .find import find_model
from .index import index_file, plain_index
from .modular import hide_progress
from .offload import Offload
from .parts import other_parts
from .pipeline import part_kinds, single_file_loader
from .quantized import part_key
from .received import LARGE, TOKENIZER_FILES, load_errors, model_error, regular_in
from .skipping import skip_layers, skip_unused
from .spellings import checkpoint_names
from .tokenizers import config_folder, stated_family

UNLIMITED = 10**9  # tokens; transformers has 10**30 where a tokenizer's config gives no limit
CLIP_LENGTH = 77


@dataclass(frozen=True, eq=False)
class Model:
    """A loaded pipeline: frozen, in evaluation mode, on its device. `path` is its local folder or file, if it has one.

    A hub model's folder is its snapshot in the local cache. `tokenizer_files` has the contents of tokenizer folders, by
    the tokenizer's name and the file name: an export must not depend on what is there hours later. Where the pipeline
    has no VAE, `pipe.vae` is the image encoder of the file `image_encoder`, and `decoder` draws the images.
    `parts` has the folder or file of each part of the pipeline that is not the model's own.
    """

    pipe: Any
    family: Family
    encoders: tuple[Encoder, ...]
    path: Path | None
    dtype: torch.dtype
    device: torch.device
    tokenizer_files: Mapping[str, Mapping[str, bytes]] = field(default_factory=dict)
    image_encoder: Path | None = None
    decoder: Any = None
    parts: Mapping[str, Path] = field(default_factory=dict)

    @property
    def denoiser(self) -> Any:
        return getattr(self.pipe, self.family.denoiser_module)

    @property
    def draws(self) -> bool:
        """Whether it can draw images."""
        return self.family.decoder is None or self.decoder is not None

    @property
    def resolution(self) -> int:
        """Side in pixels of the images that the model was trained on."""
        return native_resolution(self.family, self.denoiser.config, self.pipe.vae.config)

    @property
    def size_multiple(self) -> int:
        """Both sides of an image must be a multiple of this, in pixels."""
        return size_multiple(self.denoiser.config, self.pipe.vae.config)

    @property
    def pixels_per_latent(self) -> int | Fraction:
        """Pixels of an image for each latent, in each direction."""
        return vae_scale(self.pipe.vae.config)

    @property
    def size(self) -> int:
        """Number of parameters of the denoiser, which is most of a training step."""
        return sum(parameter.numel() for parameter in self.denoiser.parameters())


def load_model(spec: ModelSpec, device: torch.device) -> Model:
    """Load the model of a recipe: `micro`, a hub id, a diffusers folder or a single-file checkpoint.

    Weights have the recipe's dtype (the VAE float32 if its config asks for that) and require no gradient. Raises
    StageError when it cannot be found or read, lacks weights, or its family is unknown.
    """
    quiet_libraries()
    from .pipeline import read_checkpoint, read_folder

    path = find_model(spec)
    if path.is_file() and spec.family is None:
        spec = replace(spec, family=checkpoint_family(path))
    names: list[str] = []
    if path.is_file():
        single_file_loader(spec, path)  # a family that reads none is refused first
        with load_errors(lambda error: model_error(spec, error)):
            names = checkpoint_names(path)
    parts = other_parts(spec, path, families().get(spec.family or ""), names)
    # weights that are packed are better mapped: they are read one by one, and need not stay
    with aligned_reading(DTYPES[spec.dtype]) if device.type == "cpu" and not spec.weights else nullcontext():
        if path.is_file():
            pipe = read_checkpoint(spec, path, parts, names, device)
        else:
            pipe = read_folder(spec, path, parts, device)
    with load_errors(lambda error: model_error(spec, error)):
        model = _with_companions(prepare(pipe, spec, path, device), spec)
    if spec.denoiser is not None:  # the family may be known only now
        parts = {**parts, model.family.denoiser_module: Path(spec.denoiser)}
    return replace(model, tokenizer_files=_tokenizer_files(spec, pipe, path), parts=parts)


def _with_companions(model: Model, spec: ModelSpec) -> Model:
    """The model with the image encoder and decoder that its family has beside the pipeline."""
    family = model.family
    if family.image_encoder is not None:
        file = find_image_encoder(spec, family.image_encoder)
        model.pipe.vae = read_image_encoder(file, model.device)
        model = replace(model, image_encoder=file)
    if family.decoder is not None:
        model = replace(model, decoder=read_decoder(spec, family.decoder, model.dtype, model.device))
    return model


def quiet_libraries() -> None:
    """Switch off the progress bars and logs of the libraries: what matters is checked and reported here."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it advises to install what nothing here uses

    hide_broken_torchvision()
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()  # before diffusers is imported, which makes transformers log

    from diffusers.utils import logging as diffusers_logging

    diffusers_logging.disable_progress_bar()
    diffusers_logging.set_verbosity_error()


def prepare(pipe: Any, spec: ModelSpec, path: Path | None, device: torch.device) -> Model:
    """Freeze a loaded pipeline, move it to its device and describe it: the part of loading that opens no file."""
    kind = type(pipe).__name__
    width = width_of(kind, lambda module: getattr(getattr(pipe, module, None), "config", {}))
    family = choose_family(spec, kind, width).of_prediction(pipe.scheduler.config.get("prediction_type"))
    if getattr(pipe, "vae", None) is not None:
        denoiser = getattr(pipe, family.denoiser_module).config
        require_latent_channels(spec, denoiser, pipe.vae.config, family.packed)
    dtype = DTYPES[spec.dtype]
    for name, part in pipe.components.items():
        if isinstance(part, torch.nn.Module):
            own = _vae_dtype(spec, part, dtype) if name == "vae" else dtype
            share = spec.offload.get(part_key(family, name))
            part.requires_grad_(False).eval().to(device=device if share is None else torch.device("cpu"))
            _cast(part, own)
            align(part)
            for module in part.modules():
                if "num_activated_experts" in vars(module):  # diffusers' experts have no gradient in evaluation mode
                    module.train()
            if share is not None:
                Offload(part, share, device)
            if own != dtype:
                _cast_latents(part)
    if spec.prompt_chunks > 1 and not family.prompt_chunks:
        raise StageError(f"model.{no_chunks(family)}")
    hide_progress(pipe._blocks if family.modular else pipe)
    skip_layers(pipe, family, spec.clip_skip)
    for about in family.encoders:
        if getattr(pipe, about.module, None) is not None:
            skip_unused(getattr(pipe, about.module), about.last_state)
    encoders = tuple(
        _encoder(pipe, spec, about) for about in family.encoders if getattr(pipe, about.module, None) is not None
    )
    if spec.prompt_chunks > 1:
        chunks = Chunks(spec.prompt_chunks)
        for encoder in encoders:
            split_into_chunks(encoder.tokenizer, encoder.module, chunks)
    return Model(pipe, family, encoders, path, dtype, device)


def _tokenizer_files(spec: ModelSpec, pipe: Any, path: Path) -> dict[str, dict[str, bytes]]:
    """The known files in a model's tokenizer folders, except links that point outside it. None for a single file."""
    names = [name for name, part in pipe.components.items() if hasattr(part, "get_vocab") and (path / name).is_dir()]
    try:
        return {
            name: {
                file: read_regular(path / name / file, LARGE)
                for file in sorted(TOKENIZER_FILES)
                if regular_in(path / name / file, path)
            }
            for name in names
        }
    except (OSError, ValueError) as error:
        raise model_error(spec, error) from error


def _vae_dtype(spec: ModelSpec, vae: Any, dtype: torch.dtype) -> torch.dtype:
    """The recipe's, else the pipeline's; float32 for a VAE that may overflow in float16."""
    if "vae" in spec.weights:
        return DTYPES[spec.weights["vae"]]
    return torch.float32 if dtype == torch.float16 and getattr(vae.config, "force_upcast", True) else dtype


def _cast_latents(vae: Any) -> None:
    """Let a VAE decode the latents of a pipeline in another dtype, which passes them unchanged."""
    first = getattr(vae, "post_quant_conv", None) or vae.decoder
    first.register_forward_pre_hook(lambda module, inputs: (inputs[0].to(vae.dtype), *inputs[1:]))


def _cast(part: torch.nn.Module, dtype: torch.dtype) -> None:
    """Weights in this dtype, but for those that the model keeps in float32; buffers stay as the libraries made them.

    Rounded buffers would move the rotary positions of language models.
    """
    exact = set(getattr(part, "_keep_in_fp32_modules", None) or ()) if dtype == torch.bfloat16 else set()
    for name, weight in part.named_parameters():
        kept = weight.dtype == torch.float32 and not exact.isdisjoint(name.split("."))
        if weight.is_floating_point() and not kept:
            weight.data = weight.data.to(dtype)


def _encoder(pipe: Any, spec: ModelSpec, about: EncoderSpec) -> Encoder:
    module, tokenizer = getattr(pipe, about.module), getattr(pipe, about.tokenizer)
    rows, width = module.get_input_embeddings().weight.shape
    if len(tokenizer) <= len(tokenizer.all_special_tokens):  # from a folder without its files
        raise model_error(
            spec, f"{about.tokenizer} is empty; its folder needs tokenizer.json, or vocab.json and merges.txt"
        )
    if len(tokenizer) > rows:
        raise model_error(spec, f"{about.tokenizer} has {len(tokenizer)} tokens, but {about.module} has {rows} vectors")
    if tokenizer.model_max_length >= UNLIMITED:
        tokenizer.model_max_length = about.length or CLIP_LENGTH
    return Encoder(
        about.key, about.module, about.tokenizer, module, tokenizer, int(width), about.output, about.unknown_in
    )


def skeleton(spec: ModelSpec) -> Model:
    """The model of a recipe on the meta device, without weights: it has their shapes, and LoRAs can be added.

    Raises StageError if its small files are not sufficient.
    """
    quiet_libraries()
    family, folder = stated_family(spec), config_folder(spec)
    with load_errors(lambda error: model_error(spec, error)):
        path = index_file(folder)
        index = plain_index(read_json(path))
        modules = {name: _module(kind, folder / name) for name, kind in part_kinds(index).items()}
    needed = (family.denoiser_module, *(["vae"] if family.image_encoder is None else []), "text_encoder")
    lacks = [name for name in needed if name not in modules]
    if lacks:
        raise model_error(spec, f"{path} names no {lacks[0]}")
    return unweighted(family, modules, spec)


def unweighted(family: Family, modules: Mapping[str, nn.Module], spec: ModelSpec) -> Model:
    """A model of these modules on the meta device, by their names in the pipeline."""
    pipe = SimpleNamespace(**modules, components=modules)
    if family.image_encoder is not None:
        from ..effnet import CONFIG

        pipe.vae = SimpleNamespace(config=CONFIG)
    encoders = tuple(
        Encoder(about.key, about.module, about.tokenizer, modules[about.module], None, about.width, about.output)
        for about in family.encoders
        if about.module in modules
    )
    return Model(pipe, family, encoders, None, DTYPES[spec.dtype], torch.device("meta"))


def _module(kind: Any, folder: Any) -> torch.nn.Module:
    with torch.device("meta"):
        if hasattr(kind, "load_config"):  # diffusers
            made = kind.from_config(read_json(folder / "config.json"))
        else:
            made = kind(kind.config_class.from_pretrained(str(folder), local_files_only=True))
    module: torch.nn.Module = made.requires_grad_(False)
    return module


DENOISER = "denoiser"


def part_modules(model: Model) -> dict[str, nn.Module]:
    """Each part's module by its name, the denoiser first."""
    return {DENOISER: model.denoiser, **{encoder.key: encoder.module for encoder in model.encoders}}


def part_module(model: Model, part: str) -> nn.Module:
    """One part's module. StageError lists the parts when there is none of this name."""
    modules = part_modules(model)
    if part not in modules:
        raise StageError(f"this model has no part {part!r}; it has {', '.join(modules)}")
    return modules[part]


def pipe_name(model: Model, part: str) -> str:
    """The name of a part in the pipeline: `unet`, `text_encoder_2`, ..."""
    if part == DENOISER:
        return model.family.denoiser_module
    return next(encoder.module_name for encoder in model.encoders if encoder.key == part)


def kohya_prefix(model: Model, part: str) -> str:
    """The prefix of this part's LoRA in kohya's names, before the module's name."""
    prefix = model.family.lora_prefixes[pipe_name(model, part)]
    # transformers has dropped the `text_model` of some CLIP models' module names; files have always had it
    return f"{prefix}_text_model" if part.startswith("clip") else prefix
