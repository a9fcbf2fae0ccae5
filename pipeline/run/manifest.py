"""What the manifest says of a run: its inputs, and the results of each embedding."""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cosine_similarity

from ...converters.embedding import Contents, Embedding
from ..data.captions import Captioned, read_concept
from ..data.holdout import trained_images
from ..device import device_name
from ..distributed import SINGLE_PROCESS, Processes
from ..embeddings.initial import InitialTokens
from ..embeddings.injection import Encoder
from ..embeddings.metrics import nearest_tokens
from ..embeddings.norms import NormStatistics
from ..embeddings.placeholders import Replacer
from ..files import file_hashes, kept_sha256, model_hashes, shown_path
from ..models.checkpoint import prediction_of
from ..models.load import Model
from ..recipe.load import recipe_as_json
from ..recipe.model import EmbeddingSpec, Recipe
from ..tensors import from_raw
from ..versions import DECISIVE, package_version
from .context import RunContext, RunState


def data_facts(recipe: Recipe) -> dict[str, Any]:
    """The images and captions with hashes, and the share of the captions that contain each placeholder.

    Raises RecipeError when an image or caption was deleted after the check.
    """
    every = [read_concept(concept) for concept in recipe.all_concepts]
    read = trained_images(recipe, every[: len(recipe.concepts)])
    captions = [caption for concept in read for _, texts in concept.images for caption in texts]
    count = Counter(embedding for _, embeddings in _embeddings_in(recipe, read) for embedding in embeddings)
    images, trained = ({path for one in concepts for path, _ in one.images} for concepts in (every, read))
    others = (path for concept in every for path in (*concept.files, *concept.masks.values()))
    in_order = [path for concept in every for path, _ in concept.images]
    return {
        "images": len(trained),
        **({"held_out": len(images - trained)} if recipe.validation else {}),
        "concepts": [len(concept.images) for concept in read],
        "files": file_hashes(list(dict.fromkeys([*in_order, *others])), recipe.path.parent),
        "captions": captions[:5],
        "coverage": {
            embedding.placeholder: count[embedding.placeholder] / max(1, len(captions))
            for embedding in recipe.embeddings
        },
    }


def images_of_embeddings(recipe: Recipe) -> dict[str, list[str]]:
    """The images of each embedding: those with a caption that contains its placeholder.

    Opens none of them; raises as `data_facts` does.
    """
    images: dict[str, list[str]] = {embedding.placeholder: [] for embedding in recipe.embeddings}
    read = trained_images(recipe, [read_concept(concept) for concept in recipe.concepts])
    for path, embeddings in _embeddings_in(recipe, read):
        for embedding in dict.fromkeys(embeddings):
            images[embedding].append(shown_path(path, recipe.path.parent))
    return images


def _embeddings_in(recipe: Recipe, read: Sequence[Captioned]) -> list[tuple[Path, list[str]]]:
    """Each image with the embeddings of its captions, as often as captions contain them."""
    replacer = Replacer([embedding.placeholder for embedding in recipe.embeddings])
    return [
        (path, [embedding for text in texts for embedding in replacer.embeddings_in(text)])
        for concept in read
        for path, texts in concept.images
    ]


Nearest = list[list[tuple[int, float]]]  # for each vector of an embedding, tokens and their cosines


def environment(device: torch.device, processes: Processes = SINGLE_PROCESS) -> dict[str, Any]:
    """Versions, device, threads, processes: what may change the bytes of a run besides recipe, model and data."""
    return {
        "python": platform.python_version(),
        **{package: package_version(package) for package in DECISIVE},
        "platform": platform.platform(),
        "device": device.type,  # without its number: a run may be resumed on another device of the kind, or on several
        "device_name": device_name(device),
        "threads": torch.get_num_threads(),
        "processes": processes.count,
        "deterministic": torch.are_deterministic_algorithms_enabled(),
    }


def inputs_of(
    recipe: Recipe, model: Model, statistics: Mapping[str, NormStatistics], processes: Processes = SINGLE_PROCESS
) -> dict[str, Any]:
    """Everything that the bytes of a run depend on, as in the manifest: recipe, model, data, versions, device.

    Raises RecipeError when an image or caption was deleted after the check.
    """
    hashes = model_hashes(model.path) if model.path else {}
    if model.image_encoder is not None:
        hashes |= {f"image_encoder/{model.image_encoder.name}": kept_sha256(model.image_encoder)}
    for name, path in model.parts.items():
        hashes |= {f"{name}/{file}": digest for file, digest in model_hashes(path).items()}
    hashes |= {
        f"lora/{number}/{Path(path).name}": kept_sha256(Path(path)) for number, path in enumerate(recipe.lora_bases)
    }
    return {
        "recipe": recipe_as_json(recipe), "environment": environment(model.device, processes),
        "model": model_facts(recipe, model, statistics, hashes), "data": data_facts(recipe),
    }  # fmt: skip


def model_facts(
    recipe: Recipe, model: Model, statistics: Mapping[str, NormStatistics], hashes: dict[str, str]
) -> dict[str, Any]:
    """The model that was trained, and the norms of its vocabularies."""
    encoders = {}
    for encoder in model.encoders:
        norm = statistics[encoder.key]
        encoders[encoder.key] = {
            "width": encoder.width,
            "vocabulary": len(encoder.table),
            "norm": {"median": norm.median, "mean": norm.mean, "low": norm.low, "high": norm.high},
        }
    spec = recipe.model
    facts = {
        "base": spec.base, "family": model.family.name, "path": str(model.path), "sha256": hashes,
        "dtype": spec.dtype, "encoders": encoders,
    }  # fmt: skip
    if spec.weights:
        facts["weights"] = dict(sorted(spec.weights.items()))
    found = prediction_of(model.path, model.pipe.scheduler.config) if model.family.objective == "diffusion" else None
    if found is None:
        return facts
    return facts | {"prediction": {"kind": found.kind, "zero_terminal_snr": found.zero_snr, "stated_by": found.source}}


def embedding_facts(
    context: RunContext, state: RunState, end: Contents, shown: Mapping[str, list[str]]
) -> list[dict[str, Any]]:
    """What became of each embedding's vectors in each encoder; `shown` has its images."""
    start = {embedding.name: embedding for embedding in state.initial.embeddings}
    after = {embedding.name: embedding for embedding in end.embeddings}
    nearest = {encoder.key: _nearest(encoder, end) for encoder in context.model.encoders}
    return [
        _embedding_facts(
            context,
            state,
            embedding,
            start[embedding.placeholder],
            after[embedding.placeholder],
            shown[embedding.placeholder],
            nearest,
        )
        for embedding in context.recipe.embeddings
    ]


def _nearest(encoder: Encoder, end: Contents) -> dict[str, Nearest]:
    """The nearest tokens of every embedding, a few hundred vectors at a time."""
    embeddings = [embedding for embedding in end.embeddings if encoder.key in embedding.vectors]
    if not embeddings:
        return {}
    vectors = [from_raw(embedding.vectors[encoder.key]) for embedding in embeddings]
    parts = torch.cat(vectors).to(encoder.table.device).split(256)
    rows = iter([row for part in parts for row in nearest_tokens(part, encoder.table)])
    return {embedding.name: [next(rows) for _ in own] for embedding, own in zip(embeddings, vectors, strict=True)}


def _embedding_facts(
    context: RunContext, state: RunState, embedding: EmbeddingSpec, start: Embedding, after: Embedding,
    images: list[str], nearest: Mapping[str, Mapping[str, Nearest]],
) -> dict[str, Any]:  # fmt: skip
    return {
        "placeholder": embedding.placeholder,
        "initial_text": embedding.initial_text,
        "train": embedding.train,
        "stopped_at": state.trained.stopped_at.get(embedding.placeholder),
        "images": images,
        "encoders": {
            encoder.key: _vector_facts(
                state.initial_tokens[start.name][encoder.key],
                encoder,
                start,
                after,
                nearest[encoder.key][embedding.placeholder],
            )
            for encoder in context.model.encoders
            if encoder.key in after.vectors
        },
    }


def _vector_facts(
    tokens: InitialTokens, encoder: Encoder, start: Embedding, end: Embedding, nearest: Nearest
) -> dict[str, Any]:
    before, after = from_raw(start.vectors[encoder.key]), from_raw(end.vectors[encoder.key])
    pieces = encoder.tokenizer.convert_ids_to_tokens
    return {
        "tokens": list(tokens.pieces),
        "kept": tokens.kept,
        "cut": list(tokens.cut),
        "padded": tokens.padded,
        "norm_before": before.norm(dim=1).tolist(),
        "norm_after": after.norm(dim=1).tolist(),
        "distance": (after - before).norm(dim=1).tolist(),
        "cosine_to_start": cosine_similarity(after, before, dim=1).tolist(),
        "nearest": [[[pieces(token) or "", cosine] for token, cosine in row] for row in nearest],
    }
