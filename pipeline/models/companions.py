"""The models beside a pipeline that neither encodes nor draws images: its image encoder, and its decoder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

from ...converters.families import DecoderSpec, ImageEncoderSpec
from ..errors import StageError
from ..recipe.model import ModelSpec
from .family import local_path
from .find import hub_errors, hub_problem, hub_reachable
from .received import check_parts, one_line

if TYPE_CHECKING:  # checks need no torch
    import torch

    from ..effnet import EfficientNetEncoder


def stated_image_encoder(spec: ModelSpec, about: ImageEncoderSpec) -> Path | str:
    """The file of a model's image encoder, or the hub id of a model that has it.

    `model.image_encoder`, else the file beside the pipeline, else for a model of the hub the one of its family. Raises
    StageError when there is no such file.
    """
    named, base = spec.image_encoder, local_path(spec)
    if named is not None and not Path(named).is_absolute():
        return named
    folder = Path(named) if named is not None else base
    if folder is None:
        return about.example
    file = folder if folder.is_file() and named is not None else folder / about.file
    if not file.is_file():
        where = f"{folder} does not exist" if not folder.exists() else f"{folder} has no {about.file}"
        raise StageError(f"{where}; set model.image_encoder to this file (it is in {about.example})")
    return file


def find_image_encoder(spec: ModelSpec, about: ImageEncoderSpec) -> Path:
    """The local file of a model's image encoder, downloaded if it is in none. StageError when it cannot be had."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import RemoteEntryNotFoundError

    found = stated_image_encoder(spec, about)
    if isinstance(found, Path):
        return found
    asked = replace(spec, base=found, revision=None)
    try:
        return Path(hf_hub_download(found, about.file, local_files_only=not hub_reachable(asked)))
    except hub_errors() as error:
        lacking = isinstance(error, RemoteEntryNotFoundError)
        why = f"it has no {about.file}" if lacking else hub_problem(error, asked)
        raise StageError(f"model.image_encoder = {found!r}: {why}") from error


def read_image_encoder(file: Path, device: torch.device) -> EfficientNetEncoder:
    """The image encoder of a file, frozen, in float32 and in evaluation mode.

    Raises StageError when torchvision cannot be used, or the file is not of such an encoder.
    """
    from safetensors.torch import load_file

    from ..effnet import EfficientNetEncoder, torchvision_problem

    problem = torchvision_problem()
    if problem is not None:
        raise StageError(f"the image encoder {file.name} needs torchvision: {problem}")
    encoder = EfficientNetEncoder()
    try:
        weights = load_file(str(file))
        if "mapper.1.weight" in weights:
            raise ValueError("it is the image encoder of Wuerstchen 2, which is not supported")
        encoder.load_state_dict(weights)
    except Exception as error:
        text = one_line(str(error).replace("\n\t", " "))
        raise StageError(f"model.image_encoder = {str(file)!r} cannot be loaded: {text}") from error
    return encoder.float().requires_grad_(False).eval().to(device)


def read_decoder(spec: ModelSpec, about: DecoderSpec, dtype: torch.dtype, device: torch.device) -> Any:
    """The decoder pipeline of `model.decoder` (a folder or hub id) without its text encoder; None without the key.

    It gets the encoded prompt of the model's own pipeline. Raises StageError when it cannot be loaded.
    """
    import diffusers
    from torch import nn

    if spec.decoder is None:
        return None
    kind = getattr(diffusers, about.pipeline)
    try:
        local = Path(spec.decoder).is_absolute()
        offline = local or not hub_reachable(replace(spec, base=spec.decoder, revision=None))
        if local:
            check_parts(Path(spec.decoder), decoder_parts(kind))
        parts: dict[str, Any] = dict.fromkeys(TEXT_PARTS)
        for name, part in decoder_parts(kind).items():
            options = {"use_safetensors": True, "dtype": dtype} if issubclass(part, nn.Module) else {}
            parts[name] = part.from_pretrained(spec.decoder, subfolder=name, local_files_only=offline, **options)
        pipe = kind(**parts)
    except Exception as error:
        raise StageError(f"model.decoder = {spec.decoder!r} cannot be loaded: {one_line(error)}") from error
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device)


TEXT_PARTS = ("text_encoder", "tokenizer")


def decoder_parts(pipeline: Any) -> dict[str, Any]:
    """The parts that a decoder pipeline is made of, by its constructor, with their classes; those for text left out.

    By itself it cannot load PaellaVQModel from the folders of the hub, whose index has it in a module that is gone.
    """
    hints = get_type_hints(pipeline.__init__)
    return {name: kind for name, kind in hints.items() if hasattr(kind, "from_pretrained") and name not in TEXT_PARTS}
