"""The tokenizers of a model folder by the library `tokenizers` alone: transformers would bring torch along."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ..errors import StageError
from ..recipe.model import ModelSpec
from .json_file import read_json
from .received import check_model_folder
from .stated import family_of, local_path

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
