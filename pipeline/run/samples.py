"""Sample images: before training with the initial text, after it with the exported files; and class images."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from ...converters.dialects.keyed import EMBEDDINGS
from ...converters.embedding import Embedding
from ...converters.safetensors_file import read as read_safetensors
from ..data.files import files_in
from ..embeddings.injection import EmbeddingRows, Injection
from ..embeddings.placeholders import Replacer
from ..errors import StageError
from ..export.packs import packed_vectors
from ..export.standalone import standalone_outputs, standalone_vectors
from ..models.load import Model
from ..models.received import one_line
from ..recipe.model import Concept, ModelSpec, Recipe
from ..rng import generator
from ..system_errors import out_of_memory
from ..tensors import vectors_for
from ..text import count_of
from .drawing import draw_images, require_negative, scheduled
from .loras import put_lora

BATCH_PIXELS = 4 * 512 * 512  # images are drawn in batches of about this many pixels


def draw_before(model: Model, recipe: Recipe, folder: Path) -> list[dict[str, Any]]:
    """Each prompt with the initial text in place of the placeholder, drawn by the base model.

    StageError where the model cannot draw: its parts may not fit together.
    """
    with drawing(recipe.model):
        samples = recipe.samples
        negative = None if samples.negative is None else _with_initial_text(recipe, [samples.negative])[0]
        initial = replace(recipe, samples=replace(samples, negative=negative))
        return list(_draw(model, initial, _initial_prompts(recipe), folder, "before"))


@contextmanager
def drawing(spec: ModelSpec) -> Iterator[None]:
    """Turn what a library raises at the first use of a model into a StageError; errors of the machine pass."""
    try:
        yield
    except (StageError, OSError, MemoryError):
        raise
    except Exception as error:
        if out_of_memory(error) is not None:
            raise
        raise StageError(f"model.base = {spec.base!r} cannot draw an image: {one_line(error)}") from error


def kept_before(recipe: Recipe, folder: Path, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]] | None:
    """The rows of `draw_before` of an earlier process of this run, where all of its images are intact."""
    wanted = [row for part in _rows(recipe, _initial_prompts(recipe), folder, "before") for _, row in part]
    there = all(row in rows and _is_intact(folder.parent / row["path"]) for row in wanted)
    return wanted if there else None


def _is_intact(path: Path) -> bool:
    try:
        with Image.open(path) as image:
            image.verify()  # every checksum, up to the end of the file
        with Image.open(path) as image:
            image.load()
    except Exception:  # noqa: BLE001 (Pillow raises many kinds; the image is drawn again)
        return False
    return True


def _initial_prompts(recipe: Recipe) -> list[str]:
    return _with_initial_text(recipe, recipe.samples.prompts)


def _with_initial_text(recipe: Recipe, prompts: Sequence[str]) -> list[str]:
    """The prompts with the initial text in place of each placeholder."""
    replacer = Replacer([embedding.placeholder for embedding in recipe.embeddings])
    texts = {embedding.placeholder: embedding.initial_text for embedding in recipe.embeddings}
    return [replacer.replace(prompt, texts) for prompt in prompts]


def draw_after(
    model: Model, recipe: Recipe, files: Mapping[str, Path], lora: Path | None, folder: Path
) -> list[dict[str, Any]]:
    """Each prompt with the embeddings (and the LoRA) of their exported files.

    `files` maps a placeholder to its standalone safetensors file, or to the pack that contains it: nothing in memory is
    used. Embeddings that are in no prompt are not read.
    """
    injection = inject_files(model, _used_files(files, recipe))
    try:
        injection.activate(recipe.samples.texts)
        with lora_loaded(model, lora):
            return list(_draw(model, recipe, recipe.samples.prompts, folder, "after"))
    finally:
        injection.eject()


@contextmanager
def lora_loaded(model: Model, file: Path | None) -> Iterator[None]:
    """The LoRA of an exported file in the model: by the pipeline where its loader can, else part by part."""
    if file is None:
        yield
        return
    remove = put_lora(model, read_safetensors(file)[0])
    try:
        yield
    finally:
        remove()


def draw_now(model: Model, recipe: Recipe, folder: Path, name: str) -> list[dict[str, Any]]:
    """Each prompt of the recipe's samples with the embeddings that are in the model now."""
    return list(_draw(model, recipe, recipe.samples.prompts, folder, name))


def inject_files(model: Model, files: Mapping[str, Path]) -> Injection:
    """Inject embeddings from standalone files or packs into a model."""
    vectors: dict[str, dict[str, torch.Tensor]] = {encoder.key: {} for encoder in model.encoders}
    outputs: dict[str, set[str]] = {encoder.key: set() for encoder in model.encoders}
    for embedding, path in files.items():
        tensors, metadata = read_safetensors(path)
        packed = EMBEDDINGS in metadata
        replacing = standalone_outputs(tensors, model.family)
        own = packed_vectors(path, embedding) if packed else standalone_vectors(tensors, model.family) | replacing
        found = Embedding(embedding, own)
        for encoder in model.encoders:
            if encoder.key in replacing:
                outputs[encoder.key].add(embedding)
            vectors[encoder.key][embedding] = vectors_for(found, encoder.key, encoder.width).float()
    rows = {key: EmbeddingRows(embeddings, model.device, outputs[key]) for key, embeddings in vectors.items()}
    return Injection(model.pipe, model.encoders, rows)


def _used_files(files: Mapping[str, Path], recipe: Recipe) -> dict[str, Path]:
    """The files of the embeddings in the prompts; at least one, so that there is something to inject."""
    replacer = Replacer([embedding.placeholder for embedding in recipe.embeddings])
    used = [embedding for prompt in recipe.samples.texts for embedding in replacer.embeddings_in(prompt)]
    return {embedding: files[embedding] for embedding in dict.fromkeys(used or list(files)[:1]) if embedding in files}


def _rows(
    recipe: Recipe, prompts: Sequence[str], folder: Path, when: str
) -> Iterator[list[tuple[int, dict[str, Any]]]]:
    """For each prompt the seeds of its images, with their rows of the manifest."""
    samples = recipe.samples
    replacer = Replacer([embedding.placeholder for embedding in recipe.embeddings])
    for number, (prompt, asked) in enumerate(zip(prompts, samples.prompts, strict=True)):
        embeddings = replacer.embeddings_in(asked)
        yield [
            (seed, {
                "path": f"{folder.name}/{when}-{number:03d}-{seed}.png", "when": when, "prompt": prompt,
                "embedding": embeddings[0] if len(embeddings) == 1 else None, "seed": seed,
            })
            for seed in range(samples.first_seed(number), samples.first_seed(number) + samples.count)
        ]  # fmt: skip


def _draw(model: Model, recipe: Recipe, prompts: Sequence[str], folder: Path, when: str) -> Iterator[dict[str, Any]]:
    """Draw and save every prompt at every seed; yields the manifest's row of each image."""
    samples = recipe.samples
    folder.mkdir(exist_ok=True)
    size = samples.size or model.resolution
    at_once = max(1, BATCH_PIXELS // size**2)
    for prompt, rows in zip(prompts, _rows(recipe, prompts, folder, when), strict=True):
        for start in range(0, len(rows), at_once):
            part = rows[start : start + at_once]
            generators = [torch.Generator().manual_seed(seed) for seed, _ in part]
            with scheduled(model, samples.scheduler):
                images = draw_images(
                    model, [prompt] * len(part), samples.steps, samples.guidance, size, generators, samples.negative
                )
            for (_, row), image in zip(part, images, strict=True):
                path = folder.parent / row["path"]
                path.unlink(missing_ok=True)  # it may be a second name of a file elsewhere
                image.save(path)
                yield row


def without_images(recipe: Recipe, model: Model, progress: Callable[[str], None]) -> Recipe:
    """The recipe without sample images where the model cannot draw them, else the recipe itself.

    StageError for a negative prompt or a scheduler that the model does not take.
    """
    if model.draws or not recipe.samples.prompts:
        if recipe.samples.negative is not None:
            require_negative(model)
        with scheduled(model, recipe.samples.scheduler):
            return recipe
    progress(f"no sample images: {model.family.title} needs model.decoder to draw them")
    return replace(recipe, samples=replace(recipe.samples, prompts=()))


def draw_class_images(model: Model, recipe: Recipe, progress: Callable[[str], None]) -> None:
    """Fill the folders of concepts with `generate`: existing images count, missing ones are drawn.

    Image `n` depends on the recipe's seed and `n` alone. Raises StageError when the folder cannot be written.
    """
    for number, concept in enumerate(recipe.concepts):
        if concept.generate is None:
            continue
        try:
            concept.images.mkdir(parents=True, exist_ok=True)
            missing = concept.generate.count - len(files_in(concept.images, recursive=concept.recursive).images)
            if missing > 0:
                progress(f"drawing {count_of(missing, 'class image')} into {concept.images}")
                _draw_class(model, concept, _unused_numbers(concept.images, missing), (recipe.seed, "class", number))
        except OSError as error:
            raise StageError(f"class images: {concept.images} cannot be written: {error}") from error


def _unused_numbers(folder: Path, count: int) -> list[int]:
    """The first numbers that no class image has."""
    taken = {path.stem for path in folder.glob("class-*.png")}
    return [n for n in range(count + len(taken)) if f"class-{n:05d}" not in taken][:count]


def _draw_class(model: Model, concept: Concept, numbers: Sequence[int], seed: tuple[Any, ...]) -> None:
    asked = concept.generate
    assert asked is not None
    at_once = max(1, BATCH_PIXELS // model.resolution**2)
    for start in range(0, len(numbers), at_once):
        part = numbers[start : start + at_once]
        prompts = [asked.prompts[n % len(asked.prompts)] for n in part]
        generators = [generator(seed[0], *seed[1:], n) for n in part]
        images = draw_images(model, prompts, asked.steps, asked.guidance, model.resolution, generators)
        for n, prompt, image in zip(part, prompts, images, strict=True):
            _save_class_image(concept.images / f"class-{n:05d}.png", image, prompt)


def _save_class_image(path: Path, image: Image.Image, prompt: str) -> None:
    """Write the caption first, then the image: an image that exists has its caption."""
    path.with_suffix(".txt").write_text(prompt + "\n", "utf-8", newline="\n")
    part = path.with_name(f".{path.name}.part")
    image.save(part, format="PNG")
    os.replace(part, path)
