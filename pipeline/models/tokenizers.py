"""The tokenizers of a model without its weights, and without torch: for plans, checks and counting tokens."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ...converters.families import Family, families
from ..errors import StageError
from ..files import read_json
from ..recipe.model import ModelSpec
from .family import family_of, local_path
from .received import check_model_folder, one_line, reading

UNLIMITED = 10**30  # where the tokenizer's config says nothing, as transformers has it
# CLIP's, where its config names no others.
SPECIAL = {"bos": "<|startoftext|>", "eos": "<|endoftext|>", "unk": "<|endoftext|>", "pad": "<|endoftext|>"}


@dataclass(frozen=True)
class LightTokenizer:
    """Of a tokenizer of transformers as much as counting tokens takes: ids without special tokens, pieces, the limit.

    `inner` is a `tokenizers.Tokenizer`.
    """

    inner: Any
    model_max_length: int

    def __call__(self, text: str | list[str], **_: object) -> SimpleNamespace:
        """`input_ids` of a text, or of each text of a list; options are those that a plan always gives."""
        if isinstance(text, str):
            return SimpleNamespace(input_ids=self.inner.encode(text, add_special_tokens=False).ids)
        made = self.inner.encode_batch(text, add_special_tokens=False)
        return SimpleNamespace(input_ids=[one.ids for one in made])

    def convert_ids_to_tokens(self, ids: list[int]) -> list[str | None]:
        return [self.inner.id_to_token(one) for one in ids]


def light_tokenizers(spec: ModelSpec) -> dict[str, LightTokenizer]:
    """One for each text encoder whose tokenizer lies in files here that can be read so; nothing asks the network."""
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
            found[encoder.key] = made if encoder.length is None else replace(made, model_max_length=encoder.length)
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
    except BaseException as error:  # of any kind: loading the model says what is wrong
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        return None


def _special(config: dict[str, Any], name: str) -> str:
    told = config.get(f"{name}_token") or SPECIAL[name]
    return str(told["content"] if isinstance(told, dict) else told)


def _clip(folder: Path, config: dict[str, Any]) -> Any:
    """CLIP's byte-level BPE, small letters only, from `vocab.json` and `merges.txt` (transformers' `CLIPTokenizer`)."""
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
        raise StageError(f"{folder} has no tokenizer ({', '.join(e.tokenizer for e in family.encoders)})")
    return there


def stated_family(spec: ModelSpec) -> Family:
    """The family of a model by its small files, a hub id's too. StageError when it stays open."""
    base = spec.base if spec.base == "micro" else str(config_folder(spec))
    family = family_of(replace(spec, base=base))
    if family is None:
        raise StageError(f"{spec.base}: the family is unknown; set model.family, one of {', '.join(families())}")
    return family


def known_model(family: str) -> str:
    """The hub id of a well-known model of a family: tokenizers differ between families, hardly within one.

    Raises StageError when there is no such family.
    """
    if family not in families():
        raise StageError(f"{family!r} is not a family that can be trained; known: {', '.join(families())}")
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
        raise StageError(f"{path} is not a folder" if path.exists() else f"{path} does not exist")
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
        raise StageError(f"the tokenizers of {name} cannot be downloaded from the hub: {cause}; {way_out}") from error


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
