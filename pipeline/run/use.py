"""Trained embeddings and LoRAs in a pipeline of the user's own: `pivotune.load`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from itertools import count
from os import PathLike
from pathlib import Path, PurePosixPath
from typing import Any

from ...converters.bundle import PREFIX
from ...converters.embedding import Embedding
from ...converters.embeddings import with_halves
from ...converters.errors import count_of
from ...converters.families import Family, families
from ...converters.read import identify, own_embeddings, recorded_family
from ...converters.slots import UNNAMED, settle, split_out
from ...converters.tensor import RawTensor, is_zero
from ..embeddings.injection import EmbeddingRows, EmbeddingTokenizer, Encoder, Injection
from ..embeddings.placeholders import spelling
from ..errors import StageError
from ..models.family import width_of
from ..records import MANIFEST, read_manifest
from ..run_folder import file_inside
from ..tensors import CODES, vectors_for
from .loras import Remove, put_lora

# What diffusers adds to the name of a family's pipeline for another task of the same model.
_TASKS = re.compile(
    r"Img2Img|Inpaint(?:ing)?|ControlNet(?:Union)?|Control|Fill|Kontext|PAG|Adapter|ImageToVideo|VideoToVideo"
)


@dataclass(frozen=True, eq=False)
class _Target:
    """The user's pipeline, its family, its text encoders, and its tokenizers by name before anything was loaded."""

    pipe: Any
    family: Family
    encoders: tuple[Encoder, ...]
    tokenizers: Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class _Content:
    """What is to be loaded: embeddings, and the tensors of a LoRA."""

    embeddings: tuple[Embedding, ...]
    lora: Mapping[str, RawTensor]


class Loaded:
    """What `load` put into a pipeline. In a `with` statement it is unloaded at the end of the block.

    `tokens` are the texts that stand for the `embeddings` in prompts, and `adapter` is the name of the LoRA in the
    pipeline (None without one): `pipe.set_adapters(adapter, 0.8)` changes its strength.
    """

    def __init__(self, state: _State, content: _Content) -> None:
        self.tokens: tuple[str, ...] = tuple(embedding.name for embedding in content.embeddings)
        self.adapter: str | None = None
        self.embeddings, self._state = content.embeddings, state
        self._remove: Remove | None = None
        if content.lora:
            self.adapter = f"pivotune_{next(_NUMBERS)}"
            self._remove = put_lora(state.target, content.lora, self.adapter)

    def unload(self) -> None:
        """Remove the embeddings and the LoRA: the pipeline is as it was before. Calling it twice is allowed."""
        if self in self._state.loaded:
            self._state.loaded.remove(self)
            self._state.inject()
            if not self._state.loaded:
                delattr(self._state.target.pipe, _STATE)
            if self._remove is not None:
                self._remove()

    def __enter__(self) -> Loaded:
        return self

    def __exit__(self, *_: object) -> None:
        self.unload()

    def __repr__(self) -> str:
        return f"Loaded(tokens={self.tokens!r}, adapter={self.adapter!r})"


_NUMBERS = count(1)


class _State:
    """All that is loaded in one pipeline. One injection has the embeddings of all files, so that none depends on the
    order in which they are unloaded.
    """

    def __init__(self, target: _Target) -> None:
        self.target = target
        self.loaded: list[Loaded] = []
        self._injection: Injection | None = None

    def inject(self) -> None:
        """Put the embeddings of all loaded files into the pipeline, and no others."""
        if self._injection is not None:
            self._injection.eject()
            self._injection = None
            for name, tokenizer in self.target.tokenizers.items():
                setattr(self.target.pipe, name, tokenizer)
        embeddings = [embedding for one in self.loaded for embedding in one.embeddings]
        if embeddings:
            target = self.target
            rows = {encoder.key: _rows(encoder, embeddings) for encoder in target.encoders}
            self._injection = Injection(target.pipe, target.encoders, rows)
            self._injection.take(self._injection.embeddings, train=False)


_STATE = "_pivotune"  # the pipeline's attribute that has its _State while something is loaded


def load(
    pipe: Any, path: str | PathLike[str], *, name: str | None = None, lora: bool = True, family: str | None = None
) -> Loaded:
    """Load trained embeddings, and the LoRA they were trained with, into a diffusers pipeline.

        loaded = pivotune.load(pipe, "runs/cat")
        pipe(f"a photo of {loaded.tokens[0]} on a beach")
        loaded.unload()

    `path` is a run folder, an embedding of any program (.safetensors, .pt, .bin, an image of A1111), a LoRA with
    embeddings in it, or a LoRA. No code in a file is run. Embeddings reach every text encoder that they have vectors
    for, with as many vectors as they have; upper and lower case are the same in a prompt.

    `name` is what to type instead of the name in the file, where it has one embedding. `lora=False` loads the
    embeddings alone. `family` is needed where the pipeline leaves it open: a small model of your own.

    Several files can be loaded, and unloaded in any order. StageError or ConvertError, in one line, for a file of
    another kind of model, a pipeline of no supported family, or a name that is loaded already; nothing is loaded then.
    """
    if not isinstance(path, str | PathLike):
        raise StageError(f"load: path is {path!r}, not the path of a file or a run folder")
    content = _read(Path(path), name)
    if not lora:
        content = replace(content, lora={})
    if not content.embeddings and not content.lora:
        raise StageError(f"{path}: has no embedding{'' if lora else '; lora=False leaves out its LoRA'}")
    state = getattr(pipe, _STATE, None) or _State(_target(pipe, family, content.embeddings))
    fitting = replace(content, embeddings=tuple(_fit(one, state.target, str(path)) for one in content.embeddings))
    known = {spelling(token): token for one in state.loaded for token in one.tokens}
    for embedding in fitting.embeddings:
        if spelling(embedding.name) in known:
            raise StageError(f"{path}: {embedding.name!r} is already loaded; unload it, or pass another name")
        known[spelling(embedding.name)] = embedding.name
    loaded = Loaded(state, fitting)
    state.loaded.append(loaded)
    setattr(pipe, _STATE, state)
    try:
        state.inject()
    except BaseException:
        loaded.unload()
        raise
    return loaded


def _read(path: Path, name: str | None) -> _Content:
    content = _of_run(path) if (path / MANIFEST).is_file() else _of_file(path)
    if name is None:
        return content
    if len(content.embeddings) != 1:
        have = count_of(len(content.embeddings), "embedding")
        raise StageError(f"{path}: name is for a file with one embedding; this has {have}")
    return replace(content, embeddings=(replace(content.embeddings[0], name=name),))


def _of_file(path: Path) -> _Content:
    found = identify(path)
    embeddings = with_halves(own_embeddings(found.contents), path, found)
    lora = {key: raw for key, raw in found.contents.rest.items() if not key.startswith(PREFIX)}
    return _Content(tuple(embeddings), lora)


def _of_run(folder: Path) -> _Content:
    """The embeddings and the LoRA that a finished run has exported, with its placeholders as names."""
    manifest = read_manifest(folder)
    embeddings: list[Embedding] = []
    lora: Mapping[str, RawTensor] = {}
    for row in manifest["artefacts"]:
        alone = PurePosixPath(row["path"]).parent.name.endswith("_embeddings")  # others are for one program each
        if row["kind"] == "embedding" and row["embedding"] is not None and alone:
            [found] = _of_file(file_inside(folder, row["path"])).embeddings
            embeddings.append(replace(found, name=row["embedding"]))
        elif row["kind"] == "pack" and row["program"] is None:
            embeddings += _of_file(file_inside(folder, row["path"])).embeddings
        elif row["kind"] == "lora" and row["program"] is None:
            lora = _of_file(file_inside(folder, row["path"])).lora
    if not embeddings and not lora:
        raise StageError(f"{folder}: this run has exported no embedding and no LoRA (status: {manifest['status']})")
    return _Content(tuple(embeddings), lora)


def _target(pipe: Any, name: str | None, embeddings: Sequence[Embedding]) -> _Target:
    """StageError for a pipeline of no supported family, or whose text encoders already have embeddings."""
    family = _family(pipe, name, embeddings)
    encoders, tokenizers = [], {}
    for about in family.encoders:
        module, given = getattr(pipe, about.module, None), getattr(pipe, about.tokenizer, None)
        if module is None:
            continue
        if given is None:
            raise StageError(f"this {type(pipe).__name__} has no {about.tokenizer}; load it with its tokenizers")
        if isinstance(given, EmbeddingTokenizer):
            raise StageError(
                f"{about.tokenizer} is shared with a pipeline that has embeddings loaded; unload them first"
            )
        tokenizers[about.tokenizer] = given
        width = int(module.get_input_embeddings().weight.shape[-1])
        encoders.append(
            Encoder(about.key, about.module, about.tokenizer, module, _text_tokenizer(given), width, about.output,
                    about.unknown_in)
        )  # fmt: skip
    if not encoders:
        raise StageError(f"this {type(pipe).__name__} was loaded without its text encoders")
    return _Target(pipe, family, tuple(encoders), tokenizers)


def _text_tokenizer(given: Any) -> Any:
    """The tokenizer itself, or that of a processor, which reads images too (FLUX.2 dev), with its chat template."""
    if not hasattr(given, "image_processor"):
        return given
    tokenizer = deepcopy(given.tokenizer)
    if tokenizer.chat_template is None:
        tokenizer.chat_template = given.chat_template
    return tokenizer


def _family(pipe: Any, name: str | None, embeddings: Sequence[Embedding]) -> Family:
    kinds = [_TASKS.sub("", kind.__name__) for kind in type(pipe).__mro__]
    fitting = [family for kind in kinds for family in families().values() if family.pipeline == kind]
    title = type(pipe).__name__
    if not fitting:
        known = ", ".join(family.title for family in families().values())
        raise StageError(f"{title} is not supported; supported: pipelines of {known}")
    if name is not None:
        fitting = [family for family in fitting if family.name == name]
        if not fitting:
            raise StageError(f"{title} is no pipeline of the family {name!r}")
    if len(fitting) > 1:
        width = width_of(fitting[0].pipeline, lambda part: getattr(getattr(pipe, part, None), "config", {}))
        recorded = recorded_family(embeddings)
        of_width = [family for family in fitting if family.cross_attention == width]
        fitting = of_width or [one for one in fitting if recorded is not None and one.name == recorded.name] or fitting
    if len(fitting) > 1:
        names = ", ".join(family.name for family in fitting)
        raise StageError(f"{title} of this width may be of several families; pass family, one of {names}")
    return fitting[0]


def _fit(embedding: Embedding, target: _Target, path: str) -> Embedding:
    """The embedding with a key of `vectors` for each encoder of the pipeline that it has vectors for, ending in `_out`
    where they replace its output. StageError for an embedding of another kind of model.
    """
    title, recorded = target.family.title, recorded_family([embedding])
    start = f"{path}: {embedding.name!r}"
    if recorded is not None and recorded.name != target.family.name:
        raise StageError(f"{start} is for {recorded.title}; this pipeline is {title}")
    encoders = {encoder.key: encoder for encoder in target.encoders}
    vectors = {}
    for key, raw in settle(embedding.vectors, {key: encoder.width for key, encoder in encoders.items()}).items():
        base, out = split_out(key)
        if base in target.family.widths and base not in encoders:  # SD 3 without T5
            continue
        if base not in encoders or len(raw.shape) != 2 or raw.shape[1] != encoders[base].width:
            of = "its vectors have" if base == UNNAMED else f"its {key} vectors have"
            widths = ", ".join(f"{key} {encoder.width}" for key, encoder in encoders.items())
            raise StageError(f"{start} does not fit this pipeline: {of} {raw.shape[-1]} values; {title} has {widths}")
        if raw.dtype not in CODES.values():
            raise StageError(f"{start} has vectors in {raw.dtype}; supported: {', '.join(CODES.values())}")
        if out and not is_zero(raw) and encoders[base].output is None:
            raise StageError(f"{start} replaces the output of {base}, which is not supported for {title}")
        vectors[key] = raw
    live = {key for key, raw in vectors.items() if key.endswith("_out") and not is_zero(raw)}
    kept = {
        key: raw for key, raw in vectors.items() if key in live or not (key.endswith("_out") or f"{key}_out" in live)
    }
    if not kept:
        raise StageError(f"{start} has no vectors for the text encoders of this pipeline ({', '.join(encoders)})")
    return replace(embedding, vectors=kept)


def _rows(encoder: Encoder, embeddings: Sequence[Embedding]) -> EmbeddingRows:
    """The vectors of all embeddings for one encoder, on its device."""
    key, vectors, outputs = encoder.key, {}, []
    for embedding in embeddings:
        if f"{key}_out" in embedding.vectors:
            outputs.append(embedding.name)
        own = f"{key}_out" if embedding.name in outputs else key
        vectors[embedding.name] = vectors_for(embedding, own, encoder.width).float()
    device = encoder.table.device
    return EmbeddingRows(vectors, "cpu" if device.type == "meta" else device, outputs)
