"""LoRA files with embeddings: `bundle_emb.<name>.<key>`, the layout of A1111 (2023-10), LyCORIS and OneTrainer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace as with_changes

from .embedding import Contents, Embedding
from .errors import ConvertError
from .slots import NAMELESS, UNNAMED, as_rows, is_rows, outputs, slots, split_out
from .tensor import RawTensor, are_finite, are_zero

PREFIX = "bundle_emb."
KEY = "pivotune.bundle_key"  # metadata: see _original_key
DOTTED = ".string_to_param.*"  # the one key with a dot in it


def bundle(
    lora: Contents,
    embeddings: Iterable[Embedding],
    *,
    widths: Mapping[str, int] | None = None,
    replace: bool = False,
    drop_outputs: bool = False,
) -> Contents:
    """The LoRA with the embeddings in it; its own tensors and metadata are unchanged.

    `widths` are those of the LoRA's model, and an embedding for another one is refused. Raises ConvertError for what
    would make A1111 refuse the whole LoRA or lose an embedding: a name that is empty or has a dot, two names that
    differ in case only, output vectors (left out with `drop_outputs`), vectors of zeros or not finite.
    """
    bundled = {embedding.name: _as_clip_l(embedding) for embedding in lora.embeddings}
    folded = {name.casefold(): name for name in bundled}
    for embedding in embeddings:
        known = folded.get(embedding.name.casefold())
        if known is not None and not (replace and known == embedding.name):
            raise ConvertError(f"the LoRA already has an embedding {known!r}; pass --replace or rename the new one")
        folded[embedding.name.casefold()] = embedding.name
        bundled[embedding.name] = _as_clip_l(_fit(embedding, widths, drop_outputs))
    return with_changes(lora, embeddings=tuple(bundled.values()))


def tensors_of(contents: Contents) -> dict[str, RawTensor]:
    """All tensors of a LoRA with its embeddings, as one file has them.

    Raises ConvertError if two would share a name.
    """
    tensors = dict(contents.rest)
    for embedding in contents.embeddings:
        for key, tensor in embedding.vectors.items():
            name = f"{PREFIX}{embedding.name}.{_original_key(embedding) or key}"
            if name in tensors:
                raise ConvertError(f"two tensors of the bundle would be called {name[:80]!r}; rename an embedding")
            tensors[name] = tensor
    return tensors


def _original_key(embedding: Embedding) -> str:
    """The key of the only vectors in the bundle they come from, if it names no encoder: `string_to_param.*`."""
    key = embedding.metadata.get(KEY, "")
    return key if len(embedding.vectors) == 1 and key in NAMELESS else ""


def split(tensors: Mapping[str, RawTensor]) -> tuple[dict[str, dict[str, RawTensor]], dict[str, RawTensor]]:
    """Embeddings by name, each with its tensors by their key in the file, and all tensors that belong to no embedding.

    A name may have dots: the key is the last part, or the one that has a dot itself. A tensor `bundle_emb.x` has no
    key and is no embedding, nor is a number or a cube.
    """
    embeddings: dict[str, dict[str, RawTensor]] = {}
    rest: dict[str, RawTensor] = {}
    for name, tensor in tensors.items():
        parsed = parse(name) if name.startswith(PREFIX) else None  # most tensors are a LoRA's
        if parsed is None or not is_rows(tensor):
            rest[name] = tensor
        else:
            embeddings.setdefault(parsed[0], {})[parsed[1]] = tensor
    return embeddings, rest


def parse(name: str) -> tuple[str, str] | None:
    """Embedding and key of a tensor's name in a bundle, or None. `bundle_emb.mr. smith.clip_l` is the embedding `mr.

    smith`.
    """
    if not name.startswith(PREFIX):
        return None
    inner = name[len(PREFIX) :]
    if inner.endswith(DOTTED):
        return inner[: -len(DOTTED)], DOTTED[1:]
    embedding, dot, key = inner.rpartition(".")
    return (embedding, key) if dot else None


def embeddings_of(tensors: Mapping[str, RawTensor]) -> tuple[tuple[Embedding, ...], dict[str, RawTensor]]:
    """As `split`, with the vectors of each embedding by encoder key and as rows."""
    embeddings, rest = split(tensors)
    found = (
        Embedding(name, {key: as_rows(tensor) for key, tensor in slots(parts).items()}, _key_of(parts))
        for name, parts in embeddings.items()
    )
    return tuple(found), rest


def _key_of(parts: Mapping[str, RawTensor]) -> dict[str, str]:
    (key, *others) = parts
    return {KEY: key} if not others and key in NAMELESS else {}


def check_name(name: str) -> None:
    """Raises ConvertError for a name that A1111 or SD.Next would cut or cannot look up."""
    if not name.strip():
        raise ConvertError("an embedding in a bundle must have a name; pass --name")
    if "." in name:
        raise ConvertError(
            f"the embedding {name!r} has a dot, at which A1111 and SD.Next would cut it; "
            f"rename it first, for example to {name.replace('.', '_')!r}"
        )


def _as_clip_l(embedding: Embedding) -> Embedding:
    """SD 2's one encoder as all who write bundles call it: `clip_l`, like SD 1's; readers know it by its width."""
    if not embedding.vectors.keys() <= {"clip_h", "clip_h_out"}:
        return embedding
    vectors = {"clip_l" + split_out(key)[1]: tensor for key, tensor in embedding.vectors.items()}
    return with_changes(embedding, vectors=vectors)


def _fit(embedding: Embedding, widths: Mapping[str, int] | None, drop_outputs: bool) -> Embedding:
    name, vectors = embedding.name, dict(embedding.vectors)
    check_name(name)
    for key in outputs(vectors):
        if not drop_outputs:
            raise ConvertError(
                f"{name}: with its output vectors ({key}) A1111 refuses the whole LoRA; pass --drop-outputs"
            )
        del vectors[key]
    for key, tensor in vectors.items():
        data = tensor.data  # read once, for both questions
        if are_zero(data) or not are_finite(tensor.dtype, data):
            raise ConvertError(f"{name}: {key} has only zeros or values that are not finite")
        if len(tensor.shape) != 2 or 0 in tensor.shape:
            raise ConvertError(f"{name}: {key} must have the shape (vectors, width), not {tensor.shape}")
        if widths is not None and widths.get(key) != tensor.shape[1]:
            model = ", ".join(f"{encoder} {size}" for encoder, size in widths.items())
            what = "its vectors have" if key == UNNAMED else f"its {key} vectors have"
            raise ConvertError(f"{name}: {what} {tensor.shape[1]} values; the LoRA is for a model with {model}")
    if widths is not None and (missing := widths.keys() - vectors.keys()):
        raise ConvertError(f"{name}: has no vectors for {', '.join(sorted(missing))}, which the LoRA's model needs")
    return Embedding(name, vectors, embedding.metadata)
