"""How much a run writes, whether the disks have room for it, and whether its folders can be written."""

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
from ..recipe.intervals import parse_stop
from ..recipe.model import Recipe
from ..recipe.options import ExportOptions, TrainOptions
from ..text import format_bytes
from .memory import VALUE, Needs, StageNeeds

PROBE = ".probe"
_ONE = {"probe": RawTensor("F32", (1,), b"\0\0\x80\x3f")}


@dataclass(frozen=True)
class Place:
    """A folder and what is written there. A run does without a place that is not `needed`."""

    what: str
    folder: Path
    needed: bool = True


def places_of(recipe: Recipe, out: Path | None) -> Iterator[Place]:
    """The run's folder with those that are in it already, the cache of encoded images, folders of class images."""
    folder = (out or Path("runs") / recipe.name).absolute()
    yield Place("run", folder if out is not None else folder.parent)
    if out is not None and folder.is_dir():
        for inside in sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")):
            yield Place(inside.name, inside)
    cache = cache_folder(recipe.data.cache_latents, None)
    if cache is not None:
        yield Place("encoded images", cache.absolute(), needed=False)
    for concept in recipe.concepts:
        if concept.generate is not None and _lacking(concept.images, concept.generate.count, concept.recursive):
            yield Place("class images", concept.images)


def try_save(place: Place) -> str | None:
    """Save a tensor there as exports are saved, read it, and take it away again; what went wrong, in embeddings."""
    made = [folder for folder in (place.folder, *place.folder.parents) if not folder.exists()]
    probe = place.folder / PROBE
    try:
        place.folder.mkdir(parents=True, exist_ok=True)
        safetensors_file.write(probe, _ONE, {}, overwrite=True)
        tensors, _ = safetensors_file.read(probe)
        if bytes(tensors["probe"].data) != _ONE["probe"].data:
            return f"{place.folder}: gives back other bytes than were written"
        probe.unlink()
    except (OSError, ConvertError) as error:
        text = f"{place.folder}: {error.strerror or error}" if isinstance(error, OSError) else str(error)
        return text.replace(f"{os.sep}{PROBE}: ", ": ")
    finally:
        for folder in made:
            with suppress(OSError):  # somebody else has put something there
                folder.rmdir()
    return None


def _lacking(folder: Path, count: int, recursive: bool) -> bool:
    with suppress(OSError):
        return len(files_in(folder, recursive=recursive).images) < count
    return True


FILE = 4096  # bytes that any file takes at least
PIXEL = 2  # bytes of a PNG for each of its pixels
LINE = 400  # bytes of metrics for each step, and for each vector of a batch's embeddings
BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
RESERVE = 1.1


@dataclass(frozen=True)
class Written:
    """What is written to a folder: `least` is sure, `most` counts everything that may be there at one time."""

    what: str
    folder: Path
    least: int
    most: int


@dataclass(frozen=True)
class Room:
    """One file system: what is written to it, and the bytes that are free. `there` is what of it is there already."""

    folder: Path
    least: int
    most: int
    there: int
    free: int


def writes(recipe: Recipe, needs: Needs, folder: Path, shown: int, channels: int, edge: int) -> Iterator[Written]:
    """What a run writes; `shown` images of `edge` pixels a side are encoded to `channels` each."""
    points = [_checkpoint(stage, needs) for stage in needs.stages]
    largest = max(points, default=0)
    if recipe.checkpoint.every.unit != "never":
        yield Written("checkpoints", folder, largest, largest * (recipe.checkpoint.keep + 1))
    exported = [_exported(options, recipe, needs) for _, options in recipe.stages_with(ExportOptions)]
    trained = [options for _, options in recipe.stages_with(TrainOptions)]
    yield Written("exports", folder, sum(exported), sum(exported))
    saves = sum(_saves(options, exported[-1] if exported else needs.embeddings * VALUE) for options in trained)
    yield Written("saves", folder, 0, saves)
    yield Written("finished embeddings", folder, 0, needs.embeddings * VALUE * 2 if _finishes(recipe) else 0)
    drawn = 2 * len(recipe.samples.prompts) * recipe.samples.count + sum(
        _watched(options, recipe) for options in trained
    )
    yield Written("images", folder, 0, drawn * edge * edge * PIXEL)
    steps = sum(options.steps // options.log_every for options in trained)
    yield Written("metrics", folder, 0, steps * LINE * 2)
    kept = cache_folder(recipe.data.cache_latents, folder)
    if kept is not None:
        variants = recipe.data.variants if any(_varied(concept) for concept in recipe.concepts) else 1
        size = 2 * VALUE * channels * (edge // 8) ** 2 + FILE
        yield Written("encoded images", kept, 0, shown * variants * size)


def rooms(written: Sequence[Written], run: Path | None) -> list[Room]:
    """The file systems that are written to, each once; `run` is a folder that may hold some of it already."""
    found: dict[int, Room] = {}
    for one in written:
        near = next(folder for folder in (one.folder, *one.folder.parents) if folder.exists())
        device = os.stat(near).st_dev
        before = found.get(device) or Room(near, 0, 0, 0, shutil.disk_usage(near).free)
        found[device] = Room(before.folder, before.least + one.least, before.most + one.most, before.there, before.free)
    if run is not None and run.is_dir():
        device, there = os.stat(run).st_dev, sum(path.stat().st_size for path in run.rglob("*") if path.is_file())
        if device in found:
            room = found[device]
            found[device] = Room(room.folder, room.least, room.most, there, room.free)
    return list(found.values())


def room_findings(found: Sequence[Room]) -> tuple[list[str], list[str]]:
    """Errors where not even what is sure fits, warnings where it gets tight."""
    errors, warnings = [], []
    for room in found:
        if room.least - room.there > room.free:
            errors.append(f"{room.folder}: {format_bytes(room.free)} are free, and the run writes {format_bytes(room.least)} at least; "
                          "make room, or choose another --out")  # fmt: skip
        elif RESERVE * room.most - room.there > room.free:
            warnings.append(f"{room.folder}: {format_bytes(room.free)} are free, and the run may write {format_bytes(room.most)}; "
                            "checkpoint.keep, save.keep and model_dtype make it less")  # fmt: skip
    return errors, warnings


def _checkpoint(stage: StageNeeds, needs: Needs) -> int:
    """The embeddings' rows, with what is kept of them where they are trained; weights in float32."""
    still = 0 if any(one.name == "embeddings" for one in stage.moved) else needs.embeddings
    return stage.bytes + (still + stage.still) * VALUE


def _exported(options: ExportOptions, recipe: Recipe, needs: Needs) -> int:
    narrow = BYTES[options.dtype]
    targets = [programs()[name] for name in options.targets]
    embeddings = needs.embeddings * narrow * (1 + len(targets)) + FILE * len(recipe.embeddings) * (1 + len(targets))
    bundled = sum(options.bundle and one.embeddings_in_loras.startswith("yes") for one in targets)
    lora = needs.lora * narrow * (1 + bundled)
    model = needs.whole * BYTES[options.model_dtype] * len(options.model) if needs.tuned else 0
    return embeddings + lora + model


def _saves(options: TrainOptions, exported: int) -> int:
    save = options.save
    if not save:
        return 0
    times = _times(save.every, options.steps)
    return round(exported * (min(times, save.keep) if save.keep else times) + exported)


def _watched(options: TrainOptions, recipe: Recipe) -> int:
    watch = options.watch
    if not watch or not watch.sample_every:
        return 0
    prompts = len(watch.prompts or recipe.samples.prompts)
    return round(_times(watch.sample_every, options.steps) * prompts * watch.count)


def _times(every: str, total: int) -> float:
    """How often something comes in a stage; by the clock or by epochs nobody knows, so twenty times."""
    rule = parse_stop(every)
    steps = {"steps": rule.value, "percent": rule.value * total / 100}.get(rule.unit)
    return total // max(1.0, steps) if steps else 20.0


def _finishes(recipe: Recipe) -> bool:
    return any(embedding.stop_after.unit != "never" for embedding in recipe.embeddings)


def _varied(concept: object) -> bool:
    from ..data.augment import varies

    return varies(concept)  # type: ignore[arg-type]
