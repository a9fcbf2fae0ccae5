"""Initial vectors: from text, tokenized for each encoder, or from a file of any dialect."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...converters.dtypes import convert
from ...converters.embedding import Embedding
from ...converters.embeddings import names, with_halves
from ...converters.errors import ConvertError
from ...converters.read import identify, own_embeddings
from ...converters.slots import UNNAMED, settle
from ...converters.tensor import RawTensor
from ..recipe.model import EmbeddingSpec
from ..text import count_of


@dataclass(frozen=True)
class InitialTokens:
    """The initial text of one encoder: `ids` has `kept` ids of the text, then `padded` padding ids."""

    ids: tuple[int, ...]
    pieces: tuple[str, ...]
    kept: int
    cut: tuple[str, ...]
    padded: int


class TokenizedTexts:
    """TokenizedTexts as one tokenizer tokenizes them, each once; the known ones in a single call."""

    def __init__(self, tokenizer: Any, known: Iterable[str] = ()) -> None:
        self.tokenizer = tokenizer
        texts = [text for text in dict.fromkeys(known) if text.strip()]
        self._ids: dict[str, list[int]] = dict(zip(texts, self._tokenize(texts), strict=True)) if texts else {}
        self._pieces: dict[int, str] = {}

    def ids(self, text: str) -> list[int]:
        """Ids without special tokens; none for a blank text. Do not modify the list."""
        if text not in self._ids:
            self._ids[text] = self._tokenize(text) if text.strip() else []
        return self._ids[text]

    def _tokenize(self, text: str | list[str]) -> Any:
        return self.tokenizer(text, add_special_tokens=False, return_attention_mask=False, verbose=False).input_ids

    def pieces(self, ids: Sequence[int]) -> tuple[str, ...]:
        """The tokens of these ids."""
        new = [one for one in dict.fromkeys(ids) if one not in self._pieces]
        if new:
            self._pieces |= dict(zip(new, self.tokenizer.convert_ids_to_tokens(new), strict=True))
        return tuple(self._pieces[one] for one in ids)


def tokenize_initial(texts: TokenizedTexts, text: str, tokens: int | None, pad_with: str) -> InitialTokens:
    """Ids of `text` without special tokens, truncated to `tokens` and padded with the first id of `pad_with`.

    The rule is OneTrainer's. With `tokens=None` the text gives the count, at least one padding id.
    Raises ValueError when padding is needed and `pad_with` has no token in this vocabulary.
    """
    ids = texts.ids(text)
    count = tokens if tokens is not None else max(1, len(ids))
    kept = ids[:count]
    padded = count - len(kept)
    padding = texts.ids(pad_with) if padded else [0]
    if not padding:
        raise ValueError(f"the padding text {pad_with!r} has no token in this vocabulary")
    padded_ids = (*kept, *[padding[0]] * padded)
    return InitialTokens(padded_ids, texts.pieces(padded_ids), len(kept), texts.pieces(ids[count:]), padded)


def read_base(embedding: EmbeddingSpec) -> Embedding:
    """The embedding in an embedding's base file: the only one, or `base_name`.

    Raises ConvertError when the file cannot be read, or has no such embedding, or only vectors of an encoder's output.
    """
    assert embedding.base is not None
    found = identify(embedding.base)
    stored = with_halves(own_embeddings(found.contents), embedding.base, found)
    if not stored:
        raise ConvertError(f"{embedding.base}: contains no embedding")
    fitting = [one for one in stored if embedding.base_name in (None, one.name)]
    if not fitting:
        raise ConvertError(f"{embedding.base}: has no embedding {embedding.base_name!r}; it has {names(stored)}")
    if len(fitting) > 1:
        raise ConvertError(f"{embedding.base}: contains {names(fitting)}; choose one with base_name")
    return fitting[0]


def base_vectors(
    loaded: Embedding, embedding: EmbeddingSpec, keys: Sequence[str], widths: Mapping[str, int] | None = None
) -> dict[str, RawTensor]:
    """Vectors of the loaded embedding as float32, by the keys of those encoders of a model that it has vectors for.

    Raises ConvertError when it has none, or their width is not that in `widths`.
    """
    settled = settle(loaded.vectors, widths) if widths else loaded.vectors
    inputs = {key: raw for key, raw in settled.items() if not key.endswith("_out")}
    if embedding.output:
        inputs |= {key: settled[f"{key}_out"] for key in inputs if f"{key}_out" in settled}
    chosen = {key: inputs[key] for key in keys if key in inputs}
    if not chosen and len(inputs) == len(keys) == 1:  # SD 2's encoder is called clip_l in many files
        [(key, raw)] = inputs.items()
        chosen = {keys[0]: raw} if key == UNNAMED or key[:4] == keys[0][:4] == "clip" else {}
    if not chosen:
        raise ConvertError(
            f"{embedding.base}: has vectors for {', '.join(settled)}, and this model's encoders are {', '.join(keys)}"
        )
    for key, raw in chosen.items():
        if widths and raw.shape[-1] != widths[key]:
            raise ConvertError(
                f"{embedding.base}: its vectors for {key} have {raw.shape[-1]} values, not {widths[key]}"
            )
    return {key: convert(raw, "F32", f"{loaded.name} {key}")[0] for key, raw in chosen.items()}


def initial_tokens_of(
    texts: TokenizedTexts, embedding: EmbeddingSpec, pad_with: str, vectors: Mapping[str, RawTensor], key: str
) -> InitialTokens:
    """The initial tokens of an embedding in one encoder: rows of its base (id -1), or tokens of its initial text.

    `vectors` are its base's, empty for an embedding without one. An encoder without vectors in the base gets the
    initial text, in as many tokens as the base has rows. Raises ValueError when the base has another number of rows
    than `tokens`, and `resize` is not the fitting one of cut and pad.
    """
    rows = {one: raw.shape[0] for one, raw in vectors.items()}
    if key not in rows:
        return tokenize_initial(
            texts, embedding.initial_text, embedding.tokens or max(rows.values(), default=0) or None, pad_with
        )
    have, count = rows[key], embedding.tokens or rows[key]
    way = "cut" if have > count else "pad"
    if have != count and embedding.resize != way:
        found = count_of(have, "vector")
        raise ValueError(f"its base has {found} and tokens = {count}; remove tokens, or set resize = '{way}'")
    stem = embedding.base.stem if embedding.base else ""
    pieces = [f"{stem}:{number}</w>" for number in range(1, have + 1)]
    padding = tokenize_initial(texts, "", max(1, count - have), pad_with)
    padded = max(0, count - have)
    return InitialTokens(
        (*[-1] * min(have, count), *padding.ids[:padded]), (*pieces[:count], *padding.pieces[:padded]),
        min(have, count), tuple(pieces[count:]), padded,
    )  # fmt: skip


def read_base_vectors(
    embedding: EmbeddingSpec, keys: Sequence[str], widths: Mapping[str, int] | None = None
) -> dict[str, RawTensor]:
    """The vectors of an embedding's base, by encoder; none for an embedding without a base.

    Raises ConvertError.
    """
    return base_vectors(read_base(embedding), embedding, keys, widths) if embedding.base is not None else {}
