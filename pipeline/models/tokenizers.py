"""The tokenizers of a model without its weights, and without torch: for plans and for counting tokens."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from ...converters.families import Family, families
from ..errors import StageError
from ..recipe.model import ModelSpec
from .json_file import read_json
from .received import check_model_folder
from .stated import family_of, local_path
from .unreadable import one_line, reading

_NO_CODE = {"trust_remote_code": False}  # nor a question in the terminal whether to trust it
_HUB_FILES = ["model_index.json", "*/config.json", "tokenizer*/*"]
PROBE = "a photo, 1 \U0001f600"  # letters, a digit, a mark, and what no vocabulary holds whole


def load_tokenizers(spec: ModelSpec) -> dict[str, Any]:
    """One tokenizer for each text encoder of the model, by encoder key.

    A single-file checkpoint takes them from `config`. Only a hub id may go to the network, and only for the files of
    the tokenizers. Raises StageError when they cannot be found or the family stays open.
    """
    folder, family = config_folder(spec), stated_family(spec)
    loaded = {encoder.key: _load(folder / encoder.tokenizer) for encoder in family.encoders}
    there = {key: tokenizer for key, tokenizer in loaded.items() if tokenizer is not None}
    for encoder in family.encoders:
        if encoder.key in there and encoder.length is not None:
            there[encoder.key].model_max_length = encoder.length
    if not there:
        raise StageError(f"{folder} holds no tokenizer ({', '.join(e.tokenizer for e in family.encoders)})")
    return there


def stated_family(spec: ModelSpec) -> Family:
    """The family of a model by its small files, a hub id's too. StageError when it stays open."""
    base = spec.base if spec.base == "micro" else str(config_folder(spec))
    family = family_of(replace(spec, base=base))
    if family is None:
        raise StageError(f"{spec.base} does not tell its family; say model.family, one of {', '.join(families())}")
    return family


def known_model(family: str) -> str:
    """The hub id of a well-known model of a family: tokenizers differ between families, hardly within one.

    Raises StageError when there is no such family.
    """
    if family not in families():
        raise StageError(f"{family!r} is no family that can be trained; known: {', '.join(families())}")
    return families()[family].example


def token_limit(tokenizer: Any) -> int:
    """How many tokens of a text the encoder reads, its begin and end tokens not counted."""
    limit = int(tokenizer.model_max_length)
    return (limit if limit < 10**9 else 77) - 2


def config_folder(spec: ModelSpec) -> Path:
    """The folder with the model's small files: configs and tokenizers, from the hub where they are not here."""
    path = local_path(spec)
    if path is not None and path.is_file():
        if spec.config is None:
            raise StageError(f"{path} is a single file; its tokenizers need model.config, a diffusers folder or hub id")
        path = Path(spec.config) if Path(spec.config).is_absolute() else None
        source = spec.config
    else:
        source = spec.base
    if path is None:
        path = _from_hub(source, spec.revision if source == spec.base else None)
    if not path.is_dir():
        raise StageError(f"{path} is no folder" if path.exists() else f"{path} does not exist")
    check_model_folder(path)
    return path


def _from_hub(name: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    # OSError, the base class of whichever HTTP library the hub's client uses, and what it makes of a bad name
    network: tuple[type[BaseException], ...] = (*HfHubHTTPError.__bases__, ValueError)
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=_HUB_FILES))
    except network as error:
        cause = (str(error).strip() or type(error).__name__).splitlines()[0]
        way_out = "name a diffusers folder of the same family instead"
        raise StageError(f"the tokenizers of {name} cannot be had from the hub: {cause}; {way_out}") from error


def _load(folder: Path) -> Any:
    """The tokenizer of a folder by the class that the folder names; None where a model leaves the encoder out."""
    if not folder.is_dir():
        return None
    import transformers

    def told(error: Exception) -> StageError:
        return StageError(f"the tokenizer in {folder} cannot be loaded: {one_line(error)}")

    with reading(told):
        name = read_json(folder / "tokenizer_config.json").get("tokenizer_class") or "CLIPTokenizer"
        kind = getattr(transformers, str(name).removesuffix("Fast"), transformers.AutoTokenizer)
        if not (isinstance(kind, type) and issubclass(kind, transformers.PreTrainedTokenizerBase)):
            kind = transformers.AutoTokenizer
        tokenizer = kind.from_pretrained(str(folder), local_files_only=True, **_NO_CODE)
        int(tokenizer.model_max_length)
        tokenizer(PROBE, add_special_tokens=False, verbose=False)  # one without its unknown token fails at use
        return tokenizer
