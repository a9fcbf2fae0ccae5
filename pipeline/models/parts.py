"""Parts of a pipeline from elsewhere: `model.vae`, `model.denoiser`, …, and what a single file does not have."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...converters.families import Family
from ..errors import StageError
from ..recipe.defaults import DENOISER, NO_GGUF
from ..recipe.model import PARTS, ModelSpec
from .find import hub_errors, hub_problem, hub_reachable
from .received import WEIGHTS, check_parts, load_errors, model_error, one_line
from .spellings import lacking, read_tensors, renamed
from .tokenizers import config_folder

if TYPE_CHECKING:  # checks need no torch
    import torch

TITLES = {"vae": "VAE"} | {f"text_encoder{one}": f"text encoder ({'text_encoder' + one})" for one in ("", "_2", "_3")}


def stated_parts(spec: ModelSpec) -> dict[str, str]:
    """The parts that the recipe takes from elsewhere, each a path or a hub id."""
    return {name: text for name in PARTS if (text := getattr(spec, name)) is not None}


def local_part(name: str, path: Path) -> Path:
    """A file, or the folder of one part: the path itself, or in a model's folder the one of this name.

    Raises StageError if there is none.
    """
    if path.is_file():
        return path
    folder = path / name if (path / name).is_dir() else path
    if not (folder / "config.json").is_file():
        why = "does not exist" if not path.exists() else f"is no {TITLES[name]}: no config.json there or in {name}"
        raise StageError(f"model.{name} = {str(path)!r} {why}")
    check_parts(folder.parent, [folder.name])
    return folder


def find_part(spec: ModelSpec, name: str) -> Path:
    """The local folder or file of `model.<name>`; of a hub id its weights are downloaded.

    Raises StageError when it cannot be had.
    """
    from huggingface_hub import hf_hub_download, snapshot_download
    from huggingface_hub.errors import EntryNotFoundError

    text = str(getattr(spec, name))
    if Path(text).is_absolute():
        return local_part(name, Path(text))
    asked = replace(spec, base=text, revision=None)
    try:
        offline = not hub_reachable(asked)
        try:
            hf_hub_download(text, "config.json", local_files_only=offline)
            inside = ""
        except EntryNotFoundError:
            inside = f"{name}/"
        wanted = [f"{inside}*.json", f"{inside}*.safetensors"]
        return local_part(name, Path(snapshot_download(text, allow_patterns=wanted, local_files_only=offline)))
    except hub_errors() as error:
        raise StageError(f"model.{name} = {text!r}: {hub_problem(error, asked)}") from error


def missing_parts(spec: ModelSpec, path: Path, family: Family, names: list[str]) -> Iterator[tuple[str, Path | None]]:
    """The parts that a single file lacks and the recipe does not name: each with its folder in `model.config`.

    None for one that has no weights there either, and for the denoiser, without which it is not a model. Parts that the
    family's models may lack, and this config does, are left out.
    """
    config = Path(spec.config) if spec.config is not None and Path(spec.config).is_absolute() else None
    stated = stated_parts(spec)
    for name in lacking(names, family):
        folder = None if config is None else config / name
        if name in stated or (folder is not None and config is not None and config.is_dir() and not folder.is_dir()):
            continue
        there = folder is not None and name != family.denoiser_module and _has_weights(folder)
        yield name, folder if there else None


def lack_problem(path: Path, family: Family, name: str) -> str:
    """What to do about a part that is nowhere."""
    if name == family.denoiser_module:
        prefix = family.checkpoint[name].prefix
        return f"{path.name} has no denoiser (names that start with {prefix}): it is not a model of {family.title}"
    what = TITLES.get(name, name)
    return (
        f"{path.name} has no {what}; set model.{name} to a folder, hub id or file of one, or model.config to a "
        "diffusers folder with its weights"
    )


def _has_weights(folder: Path) -> bool:
    return folder.is_dir() and any(file.name.endswith(WEIGHTS) for file in folder.iterdir())


def other_parts(spec: ModelSpec, path: Path, family: Family | None, names: list[str]) -> dict[str, Path]:
    """Every part that does not come from the model itself, with its local folder or file. StageError if one is nowhere.

    `names` are the tensors of a single file; empty for a folder.
    """
    found = {name: find_part(spec, name) for name in stated_parts(spec)}
    if family is not None and names:
        for name, folder in missing_parts(spec, path, family, names):
            if folder is None:
                raise model_error(spec, lack_problem(path, family, name))
            found[name] = folder
    return found


def part_from_tensors(
    spec: ModelSpec, family: Family, name: str, kind: Any, tensors: Mapping[str, torch.Tensor], dtype: torch.dtype
) -> Any:
    """One part of a pipeline, of class `kind`, from the tensors of a file, in whichever spelling.

    Its config is that of `model.config`, else of the family's well-known model. Raises what the libraries raise, and
    ValueError when weights are missing.
    """
    changed = renamed(tensors, family)
    state = {changed.get(key, key): tensor for key, tensor in tensors.items()}
    folder = config_folder(config_spec(spec, family))
    if hasattr(kind, "from_single_file"):
        return kind.from_single_file(state, config=str(folder), subfolder=name, dtype=dtype, local_files_only=True)
    config = kind.config_class.from_pretrained(str(folder / name), local_files_only=True)
    own = _own_names(kind, config)
    prefix = family.checkpoint[name].prefix if name in family.checkpoint else ""
    short = {key.removeprefix(prefix).removeprefix("text_model."): tensor for key, tensor in state.items()}
    fitting = {own[key]: tensor for key, tensor in short.items() if key in own}
    made, info = kind.from_pretrained(
        None, config=config, state_dict=fitting, dtype=dtype, output_loading_info=True, local_files_only=True
    )
    if info["missing_keys"]:
        lacks = sorted(info["missing_keys"])
        raise ValueError(f"{name} lacks {len(lacks)} of its {len(own)} weights ({lacks[0]}, …)")
    return made


def config_spec(spec: ModelSpec, family: Family) -> ModelSpec:
    """The spec with the config of a single file: the recipe's, else the family's well-known model."""
    return replace(spec, config=spec.config or family.example)


def _own_names(kind: Any, config: Any) -> dict[str, str]:
    """Names of a text encoder's weights without the level `text_model`, each with its whole name."""
    import torch

    with torch.device("meta"):
        return {key.removeprefix("text_model."): key for key in kind(config).state_dict()}


def read_part(spec: ModelSpec, family: Family, name: str, kind: Any, path: Path, dtype: torch.dtype) -> Any:
    """One part from the folder or file of `other_parts`. StageError when it cannot be loaded or lacks weights."""
    with part_errors(name, path):
        if path.is_dir():
            return part_from_folder(kind, path, dtype)
        made = part_from_tensors(spec, family, name, kind, read_tensors(path), dtype)
        require_weights(made)
        return made


def read_denoiser(spec: ModelSpec, family: Family, kind: Any, config: Path, dtype: torch.dtype) -> Any:
    """The denoiser of `model.denoiser`, of class `kind`; `config` is a diffusers folder of the same model.

    Weights of a GGUF file stay packed (ggml's formats; diffusers' reader and names). Raises StageError when it cannot
    be read or lacks weights.
    """
    path = Path(spec.denoiser or "")
    gguf, options = path.suffix.lower() == ".gguf", {}
    if gguf and find_spec("gguf") is None:
        raise StageError(f"model.denoiser: {NO_GGUF}")
    with part_errors(DENOISER, path):
        if path.is_dir():
            folder = path if (path / "config.json").is_file() else path / family.denoiser_module
            if not (folder / "config.json").is_file():
                raise ValueError(f"it has no config.json, and none in {family.denoiser_module}")
            check_parts(folder.parent, [folder.name])
            return part_from_folder(kind, folder, dtype)
        if not hasattr(kind, "from_single_file"):
            raise ValueError(f"{kind.__name__} reads no single files; use a folder")
        if gguf:
            from diffusers import GGUFQuantizationConfig

            options["quantization_config"] = GGUFQuantizationConfig(compute_dtype=dtype)
        made = kind.from_single_file(
            str(path),
            config=str(config),
            subfolder=family.denoiser_module,
            dtype=dtype,
            local_files_only=True,
            **options,
        )
        require_weights(made)
    if gguf:
        from .quantized import keep_gguf_packed

        keep_gguf_packed(made)
    return made


def part_errors(name: str, path: Path) -> AbstractContextManager[None]:
    """Within it, an error of the libraries becomes a StageError about `model.<name>`."""

    def as_stage_error(error: Exception) -> StageError:
        if isinstance(error, NotImplementedError):  # from torch, for a weight that has no value
            error = ValueError("it lacks weights, so it is of another model")
        return StageError(f"model.{name} = {str(path)!r} cannot be loaded: {one_line(error)}")

    return load_errors(as_stage_error)


def part_from_folder(kind: Any, folder: Path, dtype: torch.dtype) -> Any:
    """One part, of class `kind`, from its folder. Raises what the libraries raise, and ValueError if weights lack."""
    made, info = kind.from_pretrained(str(folder), dtype=dtype, local_files_only=True, output_loading_info=True)
    require_weights(made, sorted(info["missing_keys"]))
    return made


def require_weights(made: Any, lacks: Sequence[str] | None = None) -> None:
    """ValueError when a part lacks weights: those named, by default those that have got no value."""
    every = made.state_dict()
    if lacks is None:
        lacks = [key for key, value in every.items() if value.is_meta]
    if lacks:
        raise ValueError(f"it lacks {len(lacks)} of its {len(every)} weights ({lacks[0]}, …)")
