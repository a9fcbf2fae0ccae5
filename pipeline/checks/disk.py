"""Disk checks: how much a run writes, free space, and whether its folders are writable."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ...converters import safetensors_file
from ...converters.errors import ConvertError
from ...converters.programs import programs
from ...converters.tensor import RawTensor
from ..data.cache import cache_folder
from ..data.files import files_in
from ..recipe.intervals import Every
from ..recipe.model import Recipe
from ..recipe.options import ExportOptions, TrainOptions
from ..text import format_bytes
from .memory import VALUE, Needs, StageNeeds

PROBE = ".probe"
_ONE = {"probe": RawTensor("F32", (1,), b"\0\0\x80\x3f")}


@dataclass(frozen=True)
class OutputFolder:
    """A folder and what is written to it. A run works without folders that are not `required`."""

    content: str
    folder: Path
    required: bool = True


def output_folders(recipe: Recipe, out: Path | None) -> Iterator[OutputFolder]:
    """The run folder and its subfolders, the cache of encoded images, folders of class images."""
    folder = (out or Path("runs") / recipe.name).absolute()
    yield OutputFolder("run", folder if out is not None else folder.parent)
    if out is not None and folder.is_dir():
        for subfolder in sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")):
            yield OutputFolder(subfolder.name, subfolder)
    cache = cache_folder(recipe.data.cache_latents, None)
    if cache is not None:
        yield OutputFolder("encoded images", cache.absolute(), required=False)
    for concept in recipe.concepts:
        if concept.generate is not None and _has_too_few(concept.images, concept.generate.count, concept.recursive):
            yield OutputFolder("class images", concept.images)


def try_save(target: OutputFolder) -> str | None:
    """Save a tensor as exports are saved, re-read it and delete it. Returns an error message or None."""
    created = [folder for folder in (target.folder, *target.folder.parents) if not folder.exists()]
    probe = target.folder / PROBE
    try:
        target.folder.mkdir(parents=True, exist_ok=True)
        safetensors_file.write(probe, _ONE, {}, overwrite=True)
        tensors, _ = safetensors_file.read(probe)
        if bytes(tensors["probe"].data) != _ONE["probe"].data:
            return f"{target.folder}: returns other bytes than were written; check the disk"
        probe.unlink()
    except (OSError, ConvertError) as error:
        text = f"{target.folder}: {error.strerror or error}" if isinstance(error, OSError) else str(error)
        return text.replace(f"{os.sep}{PROBE}: ", ": ")
    finally:
        for folder in created:
            with suppress(OSError):  # another process has written to it
                folder.rmdir()
    return None


def _has_too_few(folder: Path, count: int, recursive: bool) -> bool:
    with suppress(OSError):
        return len(files_in(folder, recursive=recursive).images) < count
    return True


FILE = 4096  # minimum bytes of a file
PIXEL = 2  # bytes of a PNG per pixel
LINE = 400  # bytes of metrics per step, and per vector in a batch
BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
RESERVE = 1.1


@dataclass(frozen=True)
class WriteEstimate:
    """Bytes written to a folder: the minimum, and the maximum that may exist at one time."""

    content: str
    folder: Path
    least: int
    most: int


@dataclass(frozen=True)
class Disk:
    """One file system: bytes written to it, bytes already written by this run, and free bytes."""

    folder: Path
    least: int
    most: int
    written: int
    free: int


def writes(
    recipe: Recipe, needs: Needs, folder: Path, images: int, channels: int, edge: int
) -> Iterator[WriteEstimate]:
    """What a run writes; `images` training images of `edge` x `edge` pixels are encoded to `channels` channels."""
    points = [_checkpoint(stage, needs) for stage in needs.stages]
    if recipe.exports_best and points:  # a copy of the best state
        points[-1] += VALUE * sum(one.values for one in needs.stages[-1].trained)
    largest = max(points, default=0)
    if recipe.checkpoint.every.unit != "never":
        yield WriteEstimate("checkpoints", folder, largest, largest * (recipe.checkpoint.keep + 1))
    exported = [_exported(options, recipe, needs) for _, options in recipe.stages_with(ExportOptions)]
    trained = [options for _, options in recipe.stages_with(TrainOptions)]
    yield WriteEstimate("exports", folder, sum(exported), sum(exported))
    saves = sum(_saves(options, exported[-1] if exported else needs.embeddings * VALUE) for options in trained)
    yield WriteEstimate("saves", folder, 0, saves)
    yield WriteEstimate("finished embeddings", folder, 0, needs.embeddings * VALUE * 2 if _has_stops(recipe) else 0)
    samples = 2 * len(recipe.samples.prompts) * recipe.samples.count + sum(
        _sample_images(options, recipe) for options in trained
    )
    yield WriteEstimate("images", folder, 0, samples * edge * edge * PIXEL)
    steps = sum(options.steps // options.log_every for options in trained)
    yield WriteEstimate("metrics", folder, 0, steps * LINE * 2)
    cache = cache_folder(recipe.data.cache_latents, folder)
    if cache is not None:
        variants = recipe.data.variants if any(_has_variants(concept) for concept in recipe.concepts) else 1
        size = 2 * VALUE * channels * (edge // 8) ** 2 + FILE
        yield WriteEstimate("encoded images", cache, 0, images * variants * size)


def disk_usage(written: Sequence[WriteEstimate], run: Path | None) -> list[Disk]:
    """The file systems that a run writes to; `run` is its folder, which may have files of it already."""
    found: dict[int, Disk] = {}
    for one in written:
        near = next(folder for folder in (one.folder, *one.folder.parents) if folder.exists())
        device = os.stat(near).st_dev
        before = found.get(device) or Disk(near, 0, 0, 0, shutil.disk_usage(near).free)
        found[device] = Disk(
            before.folder, before.least + one.least, before.most + one.most, before.written, before.free
        )
    if run is not None and run.is_dir():
        device, size = os.stat(run).st_dev, sum(path.stat().st_size for path in run.rglob("*") if path.is_file())
        if device in found:
            disk = found[device]
            found[device] = Disk(disk.folder, disk.least, disk.most, size, disk.free)
    return list(found.values())


def disk_problems(disks: Sequence[Disk]) -> tuple[list[str], list[str]]:
    """Errors if the minimum does not fit, warnings if the maximum may not."""
    errors, warnings = [], []
    for disk in disks:
        if disk.least - disk.written > disk.free:
            need = f"the run writes at least {format_bytes(disk.least)}, {format_bytes(disk.free)} are free"
            errors.append(f"{disk.folder}: {need}; free some space, or choose another --out")
        elif RESERVE * disk.most - disk.written > disk.free:
            need = f"the run writes up to {format_bytes(disk.most)}, {format_bytes(disk.free)} are free"
            warnings.append(f"{disk.folder}: {need}; checkpoint.keep, save.keep and model_dtype reduce it")
    return errors, warnings


def _checkpoint(stage: StageNeeds, needs: Needs) -> int:
    """Bytes of a checkpoint: vectors and weights in float32 with their optimizer state."""
    frozen = 0 if any(one.name == "embeddings" for one in stage.trained) else needs.embeddings
    return stage.bytes + (frozen + stage.frozen) * VALUE


def _exported(options: ExportOptions, recipe: Recipe, needs: Needs) -> int:
    value = BYTES[options.dtype]
    targets = [programs()[name] for name in options.targets]
    embeddings = needs.embeddings * value * (1 + len(targets)) + FILE * len(recipe.embeddings) * (1 + len(targets))
    bundled = sum(options.bundle and one.embeddings_in_loras.startswith("yes") for one in targets)
    renamed = sum("*" in one.lora_layouts or recipe.model.family in one.lora_layouts for one in targets)
    lora = needs.lora * value * (1 + bundled + renamed)
    model = needs.model_values * BYTES[options.model_dtype] * len(options.model) if needs.finetuned else 0
    return embeddings + lora + model


def _saves(options: TrainOptions, exported: int) -> int:
    save = options.save
    if not save:
        return 0
    times = _times(save.every, options.steps)
    return round(exported * (min(times, save.keep) if save.keep else times) + exported)


def _sample_images(options: TrainOptions, recipe: Recipe) -> int:
    watch = options.watch
    if not watch or not watch.sample_every:
        return 0
    prompts = len(watch.prompts or recipe.samples.prompts)
    return round(_times(watch.sample_every, options.steps) * prompts * watch.count)


def _times(every: Every, total: int) -> float:
    """How often an interval occurs in a stage; for times and epochs an assumed 20."""
    steps = {"steps": every.value, "percent": every.value * total / 100}.get(every.unit)
    return total // max(1.0, steps) if steps else 20.0


def _has_stops(recipe: Recipe) -> bool:
    return any(embedding.stop_after.unit != "never" for embedding in recipe.embeddings)


def _has_variants(concept: object) -> bool:
    from ..data.augment import is_augmented

    return is_augmented(concept)  # type: ignore[arg-type]
