"""A CLIP of ComfyUI whose tokenizers find further embeddings, while the one it was made from does not.

`CLIP.clone()` shares its tokenizer. So the tokenizer and each one in it are copied (shallowly: vocabularies stay
shared), and a folder of our files is put before the folders in which they look for `embedding:NAME`.
"""

from __future__ import annotations

import copy
import struct
from collections.abc import Iterator, Mapping, Sequence
from hashlib import sha256
from importlib import import_module
from itertools import product
from pathlib import Path
from typing import Any

from .. import safetensors_file
from ..dtypes import values
from ..embedding import Embedding
from ..errors import ConvertError
from ..names import distinct_stems, safe_stem
from ..programs import programs
from ..slots import SPELLINGS, settle
from ..tensor import RawTensor

PROGRAM = "comfyui"
SUFFIXES = ("", ".safetensors", ".pt", ".bin")  # with which ComfyUI looks for a name


def with_embeddings(clip: Any, embeddings: Sequence[Embedding], path: Path, strength: float) -> tuple[Any, str]:
    """A clone of `clip` that also knows these embeddings of the file `path`, and what to type for them.

    Their vectors are multiplied by `strength`. ConvertError if one has no vectors for any text encoder of the CLIP.
    """
    made = clip.clone()
    made.tokenizer = _copied(clip.tokenizer)
    parts = list(_parts(made.tokenizer))
    target = programs()[PROGRAM]
    stems = distinct_stems((one.name for one in embeddings), target.characters, target.reserved)
    files = {stems[one.name]: _tensors(one, parts, path, strength) for one in embeddings}
    folder = _folder(path, files)
    subfolder = safe_stem(path.stem, target.characters)
    for stem, tensors in files.items():
        file = folder / subfolder / f"{stem}.safetensors"
        if not file.is_file():
            safetensors_file.write(file, tensors, {"format": "pt"})
    # a blank after each: a chat template continues right behind a prompt, and ComfyUI reads names up to a blank
    prompt = "".join(f"embedding:{_name(stem, subfolder, parts)} " for stem in files)
    _add_folder(made.tokenizer, parts, folder, prompt)
    return made, prompt


def _copied(tokenizer: Any) -> Any:
    made = copy.copy(tokenizer)
    for name, part in vars(tokenizer).items():
        if hasattr(part, "tokenize_with_weights"):
            setattr(made, name, _copied(part))
    return made


def _parts(tokenizer: Any) -> Iterator[Any]:
    """The tokenizers of single encoders: those that look for embeddings, or could."""
    if hasattr(tokenizer, "embedding_directory"):
        yield tokenizer
    for part in vars(tokenizer).values():
        if hasattr(part, "tokenize_with_weights"):
            yield from _parts(part)


def _tensors(embedding: Embedding, parts: Sequence[Any], path: Path, strength: float) -> dict[str, RawTensor]:
    """The embedding's tensors by the names that ComfyUI looks for, for those encoders of the CLIP that it fits."""
    names = {SPELLINGS.get(part.embedding_key, part.embedding_key): part.embedding_key for part in parts}
    widths = {SPELLINGS.get(part.embedding_key, part.embedding_key): int(part.embedding_size) for part in parts}
    vectors = settle(embedding.vectors, widths)
    fitting = {key: raw for key, raw in vectors.items() if widths.get(key) == raw.shape[-1]}
    if not fitting:
        have = ", ".join(f"{key} {raw.shape[-1]}" for key, raw in vectors.items())
        want = ", ".join(f"{key} {width}" for key, width in widths.items())
        raise ConvertError(f"{path}: {embedding.name!r} is for another model: it has {have}; this CLIP has {want}")
    tensors = {names[key]: _scaled(raw, strength, embedding.name) for key, raw in fitting.items()}
    count = next(iter(fitting.values())).shape[0]
    for layout in programs()[PROGRAM].layouts.values():  # Anima's second tokenizer looks for ids of tokens
        if layout.token_ids and layout.files[0].keys() <= fitting.keys():
            for name, number in layout.token_ids.items():
                tensors[name] = RawTensor("I64", (count, 1), number.to_bytes(8, "little") * count)
    return tensors


def _scaled(raw: RawTensor, strength: float, name: str) -> RawTensor:
    """The vectors times the strength in float32; bit for bit as they are where it is 1."""
    if strength == 1:
        return raw
    numbers = [number * strength for number in values(raw)]
    try:
        return RawTensor("F32", raw.shape, struct.pack(f"<{len(numbers)}f", *numbers))
    except OverflowError:
        raise ConvertError(f"{name}: its vectors times {strength:g} are too large for float32") from None


def _folder(path: Path, files: Mapping[str, Mapping[str, RawTensor]]) -> Path:
    """The folder of these files: in ComfyUI's temporary folder, which it empties when it starts; named by content."""
    digest = sha256(str(path.resolve()).encode("utf-8", "surrogateescape"))
    for stem, tensors in files.items():
        for name, raw in tensors.items():
            digest.update(f"{stem}\0{name}\0{raw.dtype}\0{raw.shape}\0".encode())
            digest.update(raw.data)
    temporary = Path(import_module("folder_paths").get_temp_directory())
    return temporary / "pivotune" / digest.hexdigest()[:32]


def _name(stem: str, subfolder: str, parts: Sequence[Any]) -> str:
    """What to type after `embedding:`: with our subfolder where other folders of the CLIP have a file of that name, of
    which either may be found.
    """
    folders = [Path(folder) for part in parts for folder in _directories(part)]
    taken = any(
        (place / f"{stem}{suffix}").is_file()
        for folder in dict.fromkeys(folders)
        for place, suffix in product((folder, *(one for one in folder.rglob("*") if one.is_dir())), SUFFIXES)
    )
    return f"{subfolder}/{stem}" if taken else stem


def _directories(part: Any) -> list[str]:
    found = part.embedding_directory
    return [found] if isinstance(found, str) else list(found or ())


def _add_folder(tokenizer: Any, parts: Sequence[Any], folder: Path, prompt: str) -> None:
    """Let these tokenizers look into the folder first; ConvertError if a prompt then fails.

    Some get no folders from ComfyUI (Gemma, UMT5, Qwen). They can have ours, but what Qwen-Image's tokenizer is part of
    compares each token with a number, which fails for vectors: there they are given as ComfyUI gives those of images.
    """
    without = [part for part in parts if part.embedding_directory is None]
    for part in parts:
        part.embedding_directory = [str(folder), *_directories(part)]
    if without and not _tokenizes(tokenizer, prompt):
        for part in without:
            part.__class__ = _giving_entries(type(part))
        if not _tokenizes(tokenizer, prompt):
            keys = ", ".join(part.embedding_key for part in parts)
            raise ConvertError(f"this version of ComfyUI takes no embeddings for the text encoders {keys}")


def _tokenizes(tokenizer: Any, prompt: str) -> bool:
    try:
        tokenizer.tokenize_with_weights(prompt)
    except Exception:  # noqa: BLE001 (of any kind: it is the other program's code)
        return False
    return True


def _giving_entries(kind: Any) -> Any:
    """The class of a tokenizer, with vectors as entries `{"type": "embedding", "data": vector}`."""

    def tokenize_with_weights(self: Any, *given: Any, **options: Any) -> list[list[tuple[Any, ...]]]:
        return [
            [
                ({"type": "embedding", "data": one}, *rest) if hasattr(one, "shape") else (one, *rest)
                for one, *rest in row
            ]
            for row in kind.tokenize_with_weights(self, *given, **options)
        ]

    return type(kind.__name__, (kind,), {"tokenize_with_weights": tokenize_with_weights})
