"""Reads a diffusers folder or a single-file checkpoint as a pipeline."""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from ...converters.families import Family, families
from ..errors import StageError
from ..files import read_json
from ..recipe.defaults import QUANTIZED
from ..recipe.load import CHECKPOINTS
from ..recipe.model import ModelSpec
from ..tensors import DTYPES
from .channels import check_channels
from .checkpoint import stated_prediction
from .family import choose_family, no_single_file, width_of
from .find import GUARDS
from .index import INDEX, has_index, index_file, plain_index
from .modular import modular_pipeline, package_problem, read_parts
from .parts import config_spec, part_from_tensors, read_denoiser, read_part
from .quantized import number_format, part_key, quantize
from .received import check_model_folder, load_errors, model_error
from .spellings import read_tensors, respelled_parts
from .tokenizers import config_folder

_VARIANT = re.compile(r"(?:diffusion_pytorch_model|pytorch_model|model)\.([^.-]+)(?:-\d+-of-\d+)?\.(?:safetensors|bin)")
_LIBRARIES = ("diffusers", "transformers")


CPU = torch.device("cpu")
NO_PARTS: Mapping[str, Path] = MappingProxyType({})


def read_folder(spec: ModelSpec, folder: Path, parts: Mapping[str, Path] = NO_PARTS, device: torch.device = CPU) -> Any:
    """The pipeline of a diffusers folder, without safety checker; `parts` replace some of its models.

    What `model.weights` packs is packed on `device`, one part after the other. Raises StageError when a file is missing
    or corrupt, or when weights of a model are missing: the libraries would leave them random and at most log it.
    """
    from diffusers import DiffusionPipeline

    if not has_index(folder):
        raise StageError(f"model.base = {spec.base!r}: not a diffusers model: the folder has no {INDEX}")
    try:
        check_model_folder(folder)
    except StageError as error:
        raise model_error(spec, error) from error
    check_channels(spec, folder)
    with load_errors(lambda error: model_error(spec, error)):
        index = plain_index(read_json(index_file(folder)))
        kind = index.get("_class_name")
        family = choose_family(spec, kind, width_of(kind, lambda module: _config(folder / module / "config.json")))
        if problem := package_problem(family, _config(folder / family.denoiser_module / "config.json")):
            raise StageError(problem)
        _check_variant(spec, folder)
        given = {name: None for name, value in index.items() if name in GUARDS or value == [None, None]}
        models = {}
        for name, kind in part_kinds(index).items():
            dtype = _dtype(spec, family, name)
            if name == family.denoiser_module and spec.denoiser is not None:
                models[name] = read_denoiser(spec, family, kind, folder, dtype)
            elif name in parts:
                models[name] = read_part(spec, family, name, kind, parts[name], dtype)
            else:
                models[name] = _model(spec, folder / name, kind, dtype)
            _pack(models[name], spec, family, name, device)
        if family.modular:
            return modular_pipeline(family, models | read_parts(index, folder, models))
        tokenizers = {name: _tokenizer_of(folder / name) for name, value in index.items() if _is_processor(name, value)}
        given |= dict.fromkeys(tokenizers)
        pipe = DiffusionPipeline.from_pretrained(str(folder), local_files_only=True, **given, **models)
        pipe.register_modules(**tokenizers)
        return pipe


def _is_processor(name: str, value: Any) -> bool:
    """Whether an entry of the index is a processor in place of a tokenizer, which reads images too."""
    return (
        name.startswith("tokenizer")
        and isinstance(value, list)
        and value[:1] == ["transformers"]
        and str(value[-1]).endswith("Processor")
    )


def _tokenizer_of(folder: Path) -> Any:
    """The tokenizer in a processor's folder (FLUX.2 dev), with the chat template; the rest would need torchvision."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    template = folder / "chat_template.json"
    if tokenizer.chat_template is None and template.is_file():
        tokenizer.chat_template = read_json(template).get("chat_template")
    return tokenizer


def _config(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def part_kinds(index: dict[str, Any]) -> dict[str, Any]:
    """The parts of a folder that have weights, by name, with their classes."""
    entries = {
        name: value for name, value in index.items()
        if isinstance(value, list) and name not in GUARDS and all(isinstance(one, str) for one in value)
    }  # fmt: skip
    kinds = {}
    for name, (library, kind) in entries.items():
        found = getattr(importlib.import_module(library), kind, None) if library in _LIBRARIES else None
        if isinstance(found, type) and issubclass(found, torch.nn.Module):
            kinds[name] = found
    return kinds


def _model(spec: ModelSpec, folder: Path, kind: Any, dtype: torch.dtype) -> Any:
    """One model of a folder with all its weights."""
    with load_errors(lambda error: model_error(spec, error, _hint(spec, folder))):
        model, info = kind.from_pretrained(
            str(folder), variant=spec.variant if spec.variant in variants_in(folder) else None,
            dtype=dtype, local_files_only=True, output_loading_info=True,
        )  # fmt: skip
    check_weights(spec, folder.name, model, info["missing_keys"])
    return model


def _dtype(spec: ModelSpec, family: Family, name: str) -> torch.dtype:
    """The dtype in which a part is read: a VAE in float32 for float16 runs, which may need it so."""
    asked = number_format(spec, family, name)
    if asked in DTYPES:
        return DTYPES[asked]
    dtype = DTYPES[spec.dtype]
    return torch.float32 if name == "vae" and dtype == torch.float16 else dtype


def _pack(part: Any, spec: ModelSpec, family: Family, name: str, device: torch.device) -> None:
    """Pack the linear layers of a part if `model.weights` says so."""
    asked = number_format(spec, family, name)
    if asked not in QUANTIZED:
        return
    rest = CPU if part_key(family, name) in spec.offload else device
    if not quantize(part.requires_grad_(False), asked, DTYPES[spec.dtype], device, rest):
        raise StageError(f"model.weights: {name} has no linear layers that {asked} could pack")


def check_weights(spec: ModelSpec, name: str, model: Any, missing: Any) -> None:
    """StageError when weights of a model were not in its files."""
    if missing:
        lacks = f"{name} lacks {len(missing)} of its {len(model.state_dict())} weights ({min(missing)}, …)"
        raise model_error(spec, f"{lacks}: its file is of another model, or has unknown weight names")


def variants_in(folder: Path) -> set[str]:
    """Variants of the weight files other than the default, for example fp16."""
    found = (_VARIANT.fullmatch(file.name) for file in folder.iterdir()) if folder.is_dir() else ()
    return {match[1] for match in found if match}


def _check_variant(spec: ModelSpec, folder: Path) -> None:
    have = {variant for part in folder.iterdir() for variant in variants_in(part)}
    if spec.variant is not None and spec.variant not in have:
        listed = ", ".join(sorted(have)) or "none"
        raise StageError(f"model.variant = {spec.variant!r}: {spec.base} has no such files (variants there: {listed})")


def _hint(spec: ModelSpec, folder: Path) -> str:
    have = variants_in(folder)
    where = f" (in {folder.name})"
    return f"{where}; set model.variant = '{min(have)}'" if have and spec.variant is None else where


def single_file_loader(spec: ModelSpec, path: Path) -> tuple[Family, Any]:
    """The family of a checkpoint, and diffusers' class for its pipeline. StageError if it reads no single files."""
    import diffusers

    if path.suffix.lower() not in CHECKPOINTS:
        raise StageError(f"model.base = {spec.base!r}: a checkpoint ends in {' or '.join(CHECKPOINTS)}")
    if spec.family is None:
        known = ", ".join(families())
        raise StageError(f"the tensors of {spec.base} do not tell its family; set model.family, one of {known}")
    if why := no_single_file(families()[spec.family]):
        raise StageError(f"model.base = {spec.base!r}: {why}")
    family = families()[spec.family]
    loader = getattr(diffusers, family.pipeline)
    if not hasattr(loader, "from_single_file"):
        raise StageError(f"model.base = {spec.base!r}: {loader.__name__} reads no single file; use a diffusers folder")
    return family, loader


def read_checkpoint(
    spec: ModelSpec, path: Path, parts: Mapping[str, Path] = NO_PARTS, names: Sequence[str] = (),
    device: torch.device = CPU,
) -> Any:  # fmt: skip
    """The pipeline of a .safetensors or .ckpt file, without safety checker; `parts` replace some of its models.

    `names` are those of its tensors: parts that are spelled otherwise than diffusers expects are read by us, and so are
    those that `model.weights` packs, one after the other, on `device`. Raises StageError when the file is not a
    checkpoint, lacks weights, or its family or configs are unknown.
    """
    import diffusers
    from huggingface_hub.errors import LocalEntryNotFoundError

    family, loader = single_file_loader(spec, path)
    own = respelled_parts(names, family)
    own += [name for name in family.checkpoint if number_format(spec, family, name) in QUANTIZED and name not in own]
    if own or parts:
        spec = config_spec(spec, family)
    options = {"config": spec.config, "local_files_only": spec.config is not None and Path(spec.config).is_dir()}
    if options["local_files_only"]:
        check_model_folder(Path(str(spec.config)))
    check_channels(spec, path)

    def as_stage_error(error: Exception) -> StageError:
        if isinstance(error, NotImplementedError):  # from torch, for a weight that has no value
            return model_error(spec, "the file lacks weights of the denoiser or the VAE, so it is of another model")
        offline = isinstance(error, LocalEntryNotFoundError)
        return model_error(
            spec, error, "; set model.config to a diffusers folder of the same family" if offline else ""
        )

    with load_errors(as_stage_error):
        given = _parts_of_checkpoint(spec, family, path, parts, own, device)
        dtype = _dtype(spec, family, "vae")
        if dtype != DTYPES[spec.dtype] and "vae" not in given:  # a float16 run may need it in float32
            given["vae"] = diffusers.AutoencoderKL.from_single_file(
                str(path), dtype=dtype, **options | ({"subfolder": "vae"} if spec.config else {})
            )
        pipe = loader.from_single_file(str(path), dtype=DTYPES[spec.dtype], safety_checker=None, **options, **given)
        for name, part in pipe.components.items():
            if isinstance(part, torch.nn.Module):
                check_weights(spec, name, part, [key for key, value in part.state_dict().items() if value.is_meta])
    if family.objective == "diffusion" and (stated := stated_prediction(path)) is not None:
        pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, **stated.changes)
    return pipe


def _parts_of_checkpoint(
    spec: ModelSpec, family: Family, path: Path, parts: Mapping[str, Path], own: Sequence[str], device: torch.device
) -> dict[str, Any]:
    """The models of `parts`, and those parts `own` of the file that are not left to diffusers."""
    if not own and not parts:
        return {}
    kinds = part_kinds(plain_index(read_json(index_file(config_folder(spec)))))
    made = {}
    for name, source in parts.items():
        if name in kinds:
            made[name] = read_part(spec, family, name, kinds[name], source, _dtype(spec, family, name))
            _pack(made[name], spec, family, name, device)
    own = [name for name in own if name in kinds and name not in made]
    tensors = read_tensors(path) if own else {}
    for name in own:
        made[name] = part_from_tensors(spec, family, name, kinds[name], tensors, _dtype(spec, family, name))
        _pack(made[name], spec, family, name, device)
    return made
