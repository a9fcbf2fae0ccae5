"""The tokenizers of a model, loaded without its weights and without torch, for plans, checks and counting tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ...converters.families import EncoderSpec, Family, families
from ..errors import StageError
from ..files import read_json
from ..recipe.model import ModelSpec
from ..torchvision_problem import hide_broken_torchvision
from .family import family_of, local_path
from .index import INDEX, MODULAR
from .received import check_model_folder, load_errors, one_line

UNLIMITED = 10**30  # where the tokenizer's config has no limit, as in transformers
# CLIP's special tokens, if its config names no others.
SPECIAL = {"bos": "<|startoftext|>", "eos": "<|endoftext|>", "unk": "<|endoftext|>", "pad": "<|endoftext|>"}


@dataclass(frozen=True)
class LightTokenizer:
    """The part of a transformers tokenizer that counting tokens needs: ids without special tokens, pieces, the limit.

    `inner` is a `tokenizers.Tokenizer`.
    """

    inner: Any
    model_max_length: int

    def __call__(self, text: str | list[str], **_: object) -> SimpleNamespace:
        """`input_ids` of a text, or of each text of a list; options are ignored."""
        if isinstance(text, str):
            return SimpleNamespace(input_ids=self.inner.encode(text, add_special_tokens=False).ids)
        made = self.inner.encode_batch(text, add_special_tokens=False)
        return SimpleNamespace(input_ids=[one.ids for one in made])

    def convert_ids_to_tokens(self, ids: list[int]) -> list[str | None]:
        return [self.inner.id_to_token(one) for one in ids]


def light_tokenizers(spec: ModelSpec) -> dict[str, LightTokenizer]:
    """One for each text encoder whose tokenizer is in local files of a supported kind. Does not use the network."""
    path = local_path(spec)
    if path is not None and path.is_file():
        path = Path(spec.config) if spec.config and Path(spec.config).is_absolute() else None
    family = family_of(spec)
    if path is None or family is None:
        return {}
    try:
        check_model_folder(path)
    except StageError:
        return {}
    found = {}
    for encoder in family.encoders:
        made = _read(path / encoder.tokenizer)
        if made is not None:
            found[encoder.key] = made
    return found


def _read(folder: Path) -> LightTokenizer | None:
    from tokenizers import Tokenizer

    try:
        config = read_json(folder / "tokenizer_config.json")
        kind = str(config.get("tokenizer_class") or "CLIPTokenizer").removesuffix("Fast")
        if kind == "CLIPTokenizer" and (folder / "merges.txt").is_file():
            inner = _clip(folder, config)
        else:
            inner = Tokenizer.from_file(str(folder / "tokenizer.json"))
        return LightTokenizer(inner, int(config.get("model_max_length") or UNLIMITED))
    except BaseException as error:  # of any kind: loading the model reports what is wrong
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        return None


def _special(config: dict[str, Any], name: str) -> str:
    token = config.get(f"{name}_token") or SPECIAL[name]
    return str(token["content"] if isinstance(token, dict) else token)


def _clip(folder: Path, config: dict[str, Any]) -> Any:
    """CLIP's lower-case byte-level BPE, from `vocab.json` and `merges.txt` (transformers' `CLIPTokenizer`)."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

    files = str(folder / "vocab.json"), str(folder / "merges.txt")
    unknown = _special(config, "unk")
    inner = Tokenizer(
        models.BPE.from_file(*files, continuing_subword_prefix="", end_of_word_suffix="</w>", unk_token=unknown)
    )
    steps = [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    inner.normalizer = normalizers.Sequence(steps)
    pieces = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pieces), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    inner.add_special_tokens([_special(config, name) for name in SPECIAL])
    return inner


_NO_CODE = {"trust_remote_code": False}  # and no prompt in the terminal whether to trust it
_HUB_FILES = [INDEX, MODULAR, "*/config.json", "tokenizer*/*"]
PROBE = "a photo, 1 \U0001f600"  # letters, a digit, punctuation, and a character that is in no vocabulary


def load_tokenizers(spec: ModelSpec) -> dict[str, Any]:
    """One tokenizer for each text encoder of the model, by encoder key.

    For a single-file checkpoint they come from `config`. Only for a hub id is the network used, and only for tokenizer
    files. Raises StageError when they cannot be found or the family is unknown.
    """
    folder, family = config_folder(spec), stated_family(spec)
    loaded = {encoder.key: _load(folder / encoder.tokenizer) for encoder in family.encoders}
    there = {key: tokenizer for key, tokenizer in loaded.items() if tokenizer is not None}
    if not there:
        raise StageError(f"{folder} has no tokenizer ({', '.join(e.tokenizer for e in family.encoders)})")
    return there


def stated_family(spec: ModelSpec) -> Family:
    """The family of a model by its small files, also of a hub id. StageError when it is unknown."""
    base = spec.base if spec.base == "micro" else str(config_folder(spec))
    family = family_of(spec) or family_of(replace(spec, base=base))
    if family is None:
        raise StageError(f"{spec.base}: the family is unknown; set model.family, one of {', '.join(families())}")
    return family


def known_model(family: str) -> str:
    """The hub id of a well-known model of a family: tokenizers differ between families, hardly within one.

    Raises StageError when there is no such family.
    """
    if family not in families():
        raise StageError(f"{family!r} is not a known family; known: {', '.join(families())}")
    return families()[family].example


def token_limit(tokenizer: Any, about: EncoderSpec | None = None) -> int:
    """How many tokens of a text the encoder reads, its special ones not counted: begin and end tokens, a template."""
    length, special = (None, 2) if about is None else (about.length, about.special)
    limit = int(tokenizer.model_max_length) if length is None else length
    return (limit if limit < 10**9 else 77) - special


def token_limits(family: Family | None, tokenizers: Mapping[str, Any], chunks: int = 1) -> dict[str, int]:
    """How many tokens of a text each of a family's encoders reads, in all of its chunks, by encoder key."""
    known = {encoder.key: encoder for encoder in family.encoders} if family is not None else {}
    return {key: chunks * token_limit(tokenizer, known.get(key)) for key, tokenizer in tokenizers.items()}


def config_folder(spec: ModelSpec) -> Path:
    """The folder with the model's configs and tokenizers, downloaded from the hub if they are not local."""
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
        raise StageError(f"{path} is not a folder" if path.exists() else f"{path} does not exist")
    check_model_folder(path)
    return path


def _from_hub(name: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    # OSError, the base class of the HTTP library of the hub's client, and ValueError for a bad name
    network: tuple[type[BaseException], ...] = (*HfHubHTTPError.__bases__, ValueError)
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=_HUB_FILES))
    except network as error:
        cause = (str(error).strip() or type(error).__name__).splitlines()[0]
        hint = "use a diffusers folder of the same family instead"
        raise StageError(f"the tokenizers of {name} cannot be downloaded from the hub: {cause}; {hint}") from error


def _load(folder: Path) -> Any:
    """The tokenizer of a folder, of the class in its config; None if the model does not have this encoder."""
    if not folder.is_dir():
        return None
    hide_broken_torchvision()
    import transformers

    def as_stage_error(error: Exception) -> StageError:
        return StageError(f"the tokenizer in {folder} cannot be loaded: {one_line(error)}")

    with load_errors(as_stage_error):
        name = read_json(folder / "tokenizer_config.json").get("tokenizer_class") or "CLIPTokenizer"
        kind = getattr(transformers, str(name).removesuffix("Fast"), transformers.AutoTokenizer)
        if not (isinstance(kind, type) and issubclass(kind, transformers.PreTrainedTokenizerBase)):
            kind = transformers.AutoTokenizer
        tokenizer = kind.from_pretrained(str(folder), local_files_only=True, **_NO_CODE)
        int(tokenizer.model_max_length)
        tokenizer(PROBE, add_special_tokens=False, verbose=False)  # without an unknown token it would fail later
        return tokenizer
