"""A recipe's `[model]` becomes a pipeline with frozen weights, on its device, in its data type."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from ...converters.families import EncoderSpec, Family
from ..recipe.model import ModelSpec
from ..words.injection import Encoder
from .device import DTYPES
from .family import choose_family, width_of
from .find import find_model
from .json_file import read_regular
from .layers import skip_layers
from .received import LARGE, TOKENIZER_FILES, regular_in
from .unreadable import reading, unreadable

UNSAID = 10**9  # tokens; transformers has 10**30 where a tokenizer's config gives no limit, which none can pad to
CLIP_LENGTH = 77
ALIGNMENT = 64  # bytes; what PyTorch's own allocations have


@dataclass(frozen=True, eq=False)
class Model:
    """A loaded pipeline: frozen, in evaluation mode, on its device. `path` is its local folder or file, if it has one.

    A hub model's folder is its snapshot in the local cache. `tokenizer_files` has what its folders of tokenizers hold,
    by the tokenizer's name and the path in there: an export must not depend on what lies there hours later.
    """

    pipe: Any
    family: Family
    encoders: tuple[Encoder, ...]
    path: Path | None
    dtype: torch.dtype
    device: torch.device
    tokenizer_files: Mapping[str, Mapping[str, bytes]] = field(default_factory=dict)

    @property
    def denoiser(self) -> Any:
        return getattr(self.pipe, self.family.denoiser_module)

    @property
    def size(self) -> int:
        """Parameters of the denoiser, of which a training step computes most."""
        return sum(parameter.numel() for parameter in self.denoiser.parameters())


def load_model(spec: ModelSpec, device: torch.device) -> Model:
    """Load the model of a recipe: `micro`, a hub id, a diffusers folder or a single-file checkpoint.

    Weights are in the recipe's data type (the VAE in float32 where its config asks for that) and require no gradient.
    Raises StageError when it cannot be found, cannot be read, lacks weights, or its family stays open.
    """
    quiet_libraries()
    from .checkpoint import read_checkpoint
    from .folder import read_folder

    path = find_model(spec)
    pipe = read_checkpoint(spec, path) if path.is_file() else read_folder(spec, path)
    with reading(lambda error: unreadable(spec, error)):
        model = prepare(pipe, spec, path, device)
    return replace(model, tokenizer_files=_tokenizer_files(spec, pipe, path))


def quiet_libraries() -> None:
    """No progress bars of their own, and no advice: what matters is checked and said by us."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()  # before diffusers is imported, which makes transformers talk

    from diffusers.utils import logging as diffusers_logging

    diffusers_logging.disable_progress_bar()
    diffusers_logging.set_verbosity_error()


def prepare(pipe: Any, spec: ModelSpec, path: Path | None, device: torch.device) -> Model:
    """Freeze a loaded pipeline, move it, and say what it is: the part of loading that touches no file."""
    kind = type(pipe).__name__
    width = width_of(kind, lambda module: getattr(getattr(pipe, module, None), "config", {}))
    family = choose_family(spec, kind, width).of_prediction(pipe.scheduler.config.get("prediction_type"))
    dtype = DTYPES[spec.dtype]
    for name, part in pipe.components.items():
        if isinstance(part, torch.nn.Module):
            keep = name == "vae" and dtype == torch.float16 and getattr(part.config, "force_upcast", False)
            part.requires_grad_(False).eval().to(device=device, dtype=torch.float32 if keep else dtype)
            _align(part)
            if keep:
                _take_any_dtype(part)
    pipe.set_progress_bar_config(disable=True)
    skip_layers(pipe, family, spec.clip_skip)
    encoders = tuple(
        _encoder(pipe, spec, about) for about in family.encoders if getattr(pipe, about.module, None) is not None
    )
    return Model(pipe, family, encoders, path, dtype, device)


def _tokenizer_files(spec: ModelSpec, pipe: Any, path: Path) -> dict[str, dict[str, bytes]]:
    """The known files in the folders of a model's tokenizers, none by a link that leaves it. A single file has none."""
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
        raise unreadable(spec, error) from error


def _take_any_dtype(vae: Any) -> None:
    """Let a VAE in float32 decode latents of a float16 pipeline, which hands them over as they are."""
    first = vae.decoder if vae.post_quant_conv is None else vae.post_quant_conv
    first.register_forward_pre_hook(lambda module, inputs: (inputs[0].to(vae.dtype), *inputs[1:]))


def _align(part: torch.nn.Module) -> None:
    """Copy weights that lie at odd addresses, as mapped files leave them.

    The CPU's kernels round differently there, so the same weights would answer differently from file to file.
    """
    for tensor in (*part.parameters(), *part.buffers()):
        if tensor.data_ptr() % ALIGNMENT:
            tensor.data = tensor.data.clone()


def _encoder(pipe: Any, spec: ModelSpec, about: EncoderSpec) -> Encoder:
    module, tokenizer = getattr(pipe, about.module), getattr(pipe, about.tokenizer)
    rows, width = module.get_input_embeddings().weight.shape
    if len(tokenizer) <= len(tokenizer.all_special_tokens):  # what transformers makes of a folder without its files
        raise unreadable(
            spec, f"{about.tokenizer} is empty; its folder needs tokenizer.json, or vocab.json and merges.txt"
        )
    if len(tokenizer) > rows:
        raise unreadable(spec, f"{about.tokenizer} has {len(tokenizer)} tokens, but {about.module} has {rows} vectors")
    if tokenizer.model_max_length >= UNSAID:
        tokenizer.model_max_length = about.length or CLIP_LENGTH
    return Encoder(about.key, about.module, about.tokenizer, module, tokenizer, int(width))
