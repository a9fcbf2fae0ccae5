"""Reads the captions of a concept and finds its masks. Opens no image and needs no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from ..errors import RecipeError
from ..recipe.model import CAPTION_SOURCES, Concept
from ..text import did_you_mean_path, first_few, nearest, printable
from .caption_files import caption_file, caption_problem, has_control_characters, read_text
from .files import IMAGES, Files, compose_accents, files_in, repeats_of
from .tags import strip_weights

BESIDE = (".txt", ".caption")
TABLES = (".jsonl", ".json", ".csv", ".parquet")
LISTED = 5  # files of one kind
JSON = ".json"  # read where there is no text: tools that download images put other facts in it


@dataclass
class Captioned:
    """Images with their captions, and problems: an image without a caption is only in `problems`.

    `masks` has the mask file of each image that has one; `files` are the caption files; `repeats` has the repeats that
    the folder of an image gives (`folder_repeats`).
    """

    images: list[tuple[Path, list[str]]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    masks: dict[Path, Path] = field(default_factory=dict)
    files: list[Path] = field(default_factory=list)
    repeats: dict[Path, int] = field(default_factory=dict)

    @property
    def shown(self) -> list[int]:
        """How often each image is in an epoch, before `repeats` of the concept."""
        return [self.repeats.get(image, 1) for image, _ in self.images]


def read_captions(concept: Concept) -> list[tuple[Path, list[str]]]:
    """Every image of a concept with its captions. RecipeError lists every image and line without one."""
    return read_concept(concept).images


def read_concept(concept: Concept) -> Captioned:
    """Images, captions and masks of a concept. RecipeError lists every problem."""
    try:
        captioned = collect_captions(concept)
    except OSError as error:
        raise RecipeError([f"{concept.images}: cannot be read: {error.strerror or error}"]) from error
    if captioned.problems:
        raise RecipeError(captioned.problems)
    return captioned


def collect_captions(concept: Concept) -> Captioned:
    """Captions, with problems. OSError when the folder of images cannot be read."""
    if concept.generate is not None and not concept.images.exists():
        return Captioned()  # class images that the run will generate
    files, result = files_in(concept.images, recursive=includes_subfolders(concept)), Captioned()
    if isinstance(concept.captions, tuple):
        result.images = [(path, list(concept.captions)) for path in files.images]
    elif concept.captions == "beside":
        _beside(concept, files, result)
    elif concept.captions == "file-name":
        result.images = [(path, [path.stem.strip()]) for path in files.images]
    elif concept.captions.lower().endswith(".txt"):
        _templates(Path(concept.captions), files, result)
    elif concept.captions.lower().endswith(TABLES):
        _table(concept, files, result)
    else:
        result.problems += source_problems(concept)
    if concept.prefix or concept.suffix:
        result.images = [
            (path, [f"{concept.prefix}{text}{concept.suffix}" for text in texts]) for path, texts in result.images
        ]
    if concept.strip_weights:
        result.images = [(path, [strip_weights(text) for text in texts]) for path, texts in result.images]
    if files.skipped:
        result.warnings.append(_skipped(files.skipped))
    if concept.folder_repeats:
        found = ((image, repeats_of(image, concept.images)) for image, _ in result.images)
        result.repeats = {image: of_folder[0] for image, of_folder in found if of_folder}
    _masks(concept, files, result)
    _refuse_unusable(concept, result)
    result.problems = [printable(text) for text in result.problems]
    result.warnings = [printable(text) for text in result.warnings]
    return result


def _skipped(paths: list[Path]) -> str:
    """About files that look like images and are not read."""
    what = "file is an image" if len(paths) == 1 else "files are images"
    names = first_few([path.name for path in paths], LISTED)
    return f"{len(paths)} {what} in a format that is not supported: {names}; save them as PNG or JPEG, or remove them"


def includes_subfolders(concept: Concept) -> bool:
    """Whether the images in subfolders belong to a concept."""
    return concept.recursive or bool(concept.folder_repeats)


def _refuse_unusable(concept: Concept, result: Captioned) -> None:
    """Report and remove images with control characters in their names, or captions that cannot be tokenized."""
    usable = []
    for image, texts in result.images:
        inner = image.relative_to(concept.images)  # includes subfolders
        mask = result.masks.get(image)
        named = [
            path for path in (inner, mask and Path(mask.name)) if path is not None and has_control_characters(str(path))
        ]
        wrong = next((why for text in texts if (why := caption_problem(text))), None)
        if named:
            result.problems.append(f"{image.parent / named[0].name}: its name has control characters; rename it")
        elif wrong:
            result.problems.append(f"{image}: its caption {wrong}; shorten or fix it")
        else:
            usable.append((image, texts))
    result.images = usable


def source_problems(concept: Concept) -> list[str]:
    """What is wrong with `captions` of a concept, apart from images."""
    source = concept.captions
    if isinstance(source, tuple) or source in CAPTION_SOURCES:
        return []
    if source.lower().endswith((".txt", *TABLES)):
        missing = f"{source}: the captions file does not exist{did_you_mean_path(Path(source))}"
        return [] if Path(source).is_file() else [missing]
    names = ", ".join(f"'{name}'" for name in CAPTION_SOURCES)
    known = f"{names}, a {', '.join(TABLES)} or .txt file, or a list of templates"
    hint = f"; did you mean '{near}'?" if (near := nearest(Path(source).name, CAPTION_SOURCES)) else ""
    return [f"{source}: captions come from {known}{hint}"]


def _beside(concept: Concept, files: Files, result: Captioned) -> None:
    owners: dict[Path, Path] = {}
    for image in files.images:
        paths = _caption_paths(image, concept.caption_extension, files)
        if len(paths) > 1:
            names = " and ".join(path.name for path in paths)
            choice = next(iter(paths)).suffix
            fix = f'set caption_extension = "{choice}", or keep one' if paths[1].suffix != choice else "keep one"
            result.problems.append(f"{image}: has two caption files, {names}; {fix}")
            continue
        of_folder = repeats_of(image, concept.images) if concept.folder_repeats and not paths else None
        if of_folder:
            result.images.append((image, [of_folder[1]]))
            continue
        path = paths[0] if paths else image.with_suffix(concept.caption_extension or ".txt")
        captions = caption_file(path, concept, f"the caption of {image.name}", result.problems)
        if captions:
            result.images.append((image, captions))
            if path in owners:
                result.warnings.append(f"{image}: has the same caption file as {owners[path].name}, {path.name}")
            else:
                result.files.append(path)
            owners.setdefault(path, image)


def _caption_paths(image: Path, extension: str | None, files: Files) -> list[Path]:
    """The caption files of an image: x.txt or x.png.txt, or with another extension; several by mistake."""
    if extension is not None:
        return (files.siblings(image, extension) or files.siblings(image, image.suffix + extension))[:1]
    texts = files.siblings(image, *BESIDE, *(image.suffix + ending for ending in BESIDE))
    return texts or files.siblings(image, JSON) or files.siblings(image, image.suffix + JSON)


def _templates(path: Path, files: Files, result: Captioned) -> None:
    """One template a line; a line that starts with # is a comment."""
    text = read_text(path, "the file of templates", result.problems)
    lines = [line.strip() for line in (text or "").splitlines()]
    templates = [line for line in lines if line and not line.startswith("#")]
    if text is not None and not templates:
        result.problems.append(f"{path}: contains no template; write one per line")
    if templates:
        result.files.append(path)
        result.images = [(image, list(templates)) for image in files.images]


def _table(concept: Concept, files: Files, result: Captioned) -> None:
    from .caption_tables import table_rows

    path, folder = Path(str(concept.captions)), concept.images
    names = {compose_accents(image.relative_to(folder).as_posix()): image for image in files.images}
    bare = {name.removesuffix(image.suffix): image for name, image in names.items()}  # as in kohya's metadata
    captions: dict[Path, list[str]] = {}
    for number, written, texts in table_rows(path, concept.tag_separator, result.problems):
        name = compose_accents(_inside(written, folder))
        image = names.get(name) or bare.get(name)
        if image is not None:
            captions.setdefault(image, []).extend(texts)
        else:
            guess = nearest(name, names)
            hint = f"; did you mean '{guess}'?" if guess else ""
            result.problems.append(f"{path}:{number}: {folder} has no image '{name}'{hint}")
    result.files.append(path)
    for name, image in names.items():
        if image in captions:
            result.images.append((image, captions[image]))
        elif captions:
            result.problems.append(f"{path}: no caption for {name}; add a line for it")


def _inside(name: str, folder: Path) -> str:
    """An image of a table by its path in the folder of images; the table may have its path from the root."""
    name = name.replace("\\", "/").removeprefix("./")
    return name.removeprefix(f"{folder.as_posix()}/")


def _masks(concept: Concept, files: Files, result: Captioned) -> None:
    if concept.masks in ("none", "alpha"):
        return
    folder = None if concept.masks == "beside" else Path(concept.masks)
    try:
        there = files_in(folder, recursive=includes_subfolders(concept)) if folder else files
    except OSError as error:
        result.problems.append(f"{folder}: the folder of masks cannot be read: {error.strerror or error}")
        return
    for image, _ in result.images:
        if folder is None:
            found = there.mask(image)
        else:
            expected = folder / image.relative_to(concept.images)
            found = there.siblings(expected, *IMAGES) + there.mask(expected)
        if len(found) > 1:
            result.problems.append(f"{image}: has {len(found)} masks, {found[0].name} and {found[1].name}; keep one")
        elif found:
            result.masks[image] = found[0]
    without = [image.name for image, _ in result.images if image not in result.masks]
    if without and (result.masks or folder):
        text = f"{without[0]} and {len(without) - 1} more have" if len(without) > 1 else f"{without[0]} has"
        result.warnings.append(f"{text} no mask: the loss covers the full image")
