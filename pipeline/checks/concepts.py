"""Checks of images and captions, and of how captions are read. Reads only the start and the end of image files."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from ...converters.families import Family
from ..data.captions import Captioned, collect_captions, source_problems
from ..data.files import IMAGES, repeated_folder
from ..data.tags import split_tags, weights_in, wildcards_in
from ..embeddings.placeholders import Replacer, spelling
from ..errors import StageError
from ..files import is_hidden
from ..recipe.model import Concept, Recipe
from ..recipe.options import TrainOptions
from ..recipe.problem import Finding, KeyPath
from ..text import count_of, did_you_mean_path, first_few

MAX_LISTED = 10  # problems of one kind
MIN_VISIBLE = 0.5  # a warning if less of an image is left after cropping


def image_findings(recipe: Recipe, captioned: list[Captioned], *, look: bool = True) -> Iterator[Finding]:
    """Checks of all concepts. Their captions are appended to `captioned`, one item per concept.

    With look = False no image is opened: the size of crops is unknown.
    """
    if not recipe.concepts and any(stage.kind == "train" for stage in recipe.stages):
        yield Finding(("concept",), "no training images; add a [[concept]] with images = a folder")
    for index, concept in enumerate(recipe.concepts):
        result = Captioned()
        captioned.append(result)
        yield from _concept(index, concept, recipe, result, look)
    if recipe.concepts and all(concept.prior for concept in recipe.concepts):
        yield Finding(("concept",), "every concept has prior = true; at least one must show the subject to train")


def batch_findings(recipe: Recipe, captioned: list[Captioned]) -> Iterator[Finding]:
    """Warnings about batches that are larger than an epoch: no image is used twice in a batch."""
    shown = sum(
        concept.images_per_epoch or sum(read.shown) * concept.repeats
        for concept, read in zip(recipe.concepts, captioned, strict=True)
    )
    for index, options in recipe.stages_with(TrainOptions):
        if 0 < shown < options.batch_size and recipe.data.balance == "none":
            epoch = count_of(shown, "image")
            text = f"larger than an epoch of {epoch}; increase a concept's repeats or use a smaller batch"
            yield Finding(("stage", index, "batch_size"), text, "warning")


def _concept(index: int, concept: Concept, recipe: Recipe, result: Captioned, look: bool) -> Iterator[Finding]:
    key_path: KeyPath = ("concept", index)
    folder, where = concept.images, (*key_path, "images")
    if concept.generate is not None:
        yield from _generate_findings(index, concept, recipe)
        if not os.path.exists(folder):
            return
    if not os.path.isdir(folder):  # unlike Path's methods, these accept names that no file system does
        file = f"{folder} is a file; give the folder of the images"
        yield Finding(where, file if os.path.exists(folder) else f"{folder} does not exist{did_you_mean_path(folder)}")
        yield from (Finding((*key_path, "captions"), text) for text in source_problems(concept))
        return
    try:
        read = collect_captions(concept)
    except OSError as error:
        yield Finding(where, f"{folder} cannot be read: {error.strerror or error}")
        return
    vars(result).update(vars(read))
    if not read.images and not read.problems and concept.generate is None:
        yield Finding(where, f"no images in {folder} ({_contents(folder)}); supported: {', '.join(IMAGES)}")
    broken, odd = _inspect_images(concept, recipe, read) if look else ([], [])
    yield from _first_findings([Finding(where, text) for text in broken])
    yield from _first_findings([Finding((*key_path, "captions"), text) for text in read.problems])
    yield from (Finding(where, text, "warning") for text in _unused_repeats(concept, read))
    yield from _first_findings([Finding(where, text, "warning") for text in odd])
    yield from _first_findings([Finding(where, text, "warning") for text in read.warnings])


def _generate_findings(index: int, concept: Concept, recipe: Recipe) -> Iterator[Finding]:
    """Checks of a concept whose class images are generated."""
    key_path: KeyPath = ("concept", index)
    where = (*key_path, "generate")
    if not concept.prior:
        yield Finding(where, "generated class images need prior = true")
    if concept.captions != "beside":
        yield Finding(where, 'generated images have captions beside them: set captions = "beside"')
    if any(other.images == concept.images for at, other in enumerate(recipe.concepts) if at != index):
        text = "generated images need their own folder; this one is used by another [[concept]]"
        yield Finding((*key_path, "images"), text)
    for prompt in concept.generate.prompts if concept.generate else ():
        found = [embedding.placeholder for embedding in recipe.embeddings if embedding.placeholder in prompt]
        if found:
            yield Finding((*where, "prompts"), f"the base model does not know '{found[0]}'; use its class instead")


def _inspect_images(concept: Concept, recipe: Recipe, captioned: Captioned) -> tuple[list[str], list[str]]:
    """Unusable images, and warnings about others, from the first and last bytes of the files."""
    if not captioned.images:
        return [], []  # avoids importing Pillow
    from ..data.buckets import visible_share
    from ..data.complete import refuse_truncated
    from ..data.examples import crop_of, require_visible
    from ..data.images import ENDINGS, inspect_image

    broken, odd = [], []
    edge = concept.resolution or _resolution(recipe)
    for path, _ in captioned.images:
        try:
            size, kind = inspect_image(path)
            cut = crop_of(size, concept, recipe.data, edge or 512)
            require_visible(path, size, cut)
            refuse_truncated(path, kind)
            if path in captioned.masks:
                inspect_image(captioned.masks[path])
        except StageError as error:
            broken.append(str(error))
            continue
        if not path.name.lower().endswith(ENDINGS[kind]):
            odd.append(f"{path}: a {kind} file with another extension; it is read as {kind}")
        if visible_share(size, cut) < MIN_VISIBLE:
            fix = "" if recipe.data.buckets else "; set data.buckets = true to keep more"
            odd.append(
                f"{path}: {visible_share(size, cut):.0%} of its {size[0]}x{size[1]} pixels are left after cropping{fix}"
            )
        elif edge and min(size) * 4 < edge:
            odd.append(f"{path}: {size[0]}x{size[1]} pixels are enlarged more than 4x")
    return list(dict.fromkeys(broken)), odd


def _resolution(recipe: Recipe) -> int | None:
    """The resolution of the first train stage, if it is set."""
    return next((options.resolution for _, options in recipe.stages_with(TrainOptions)), None)


def _first_findings(findings: list[Finding]) -> Iterator[Finding]:
    yield from findings[:MAX_LISTED]
    if len(findings) > MAX_LISTED:
        yield Finding(findings[0].path, f"and {len(findings) - MAX_LISTED} more of this kind", findings[0].severity)


def _contents(folder: Path) -> str:
    """The contents of a folder by file extension."""
    entries = [entry for entry in os.scandir(folder) if not is_hidden(entry.name)]
    ends = Counter(Path(entry.name).suffix.lower() or "without extension" for entry in entries if entry.is_file())
    folders = sum(entry.is_dir() for entry in entries)
    parts = [f"{count} {end}" for end, count in ends.most_common(3)]
    if folders:
        repeated = any(entry.is_dir() and repeated_folder(entry.name) for entry in entries)
        key = "folder_repeats = true includes them with the repeats in their names"
        parts.append(f"{count_of(folders, 'folder')}; {key if repeated else 'recursive = true includes them'}")
    return ", ".join(parts) or "empty"


def _unused_repeats(concept: Concept, read: Captioned) -> Iterator[str]:
    """A line about folders with repeats in their names, as for kohya's scripts, if nothing says whether to use them."""
    if concept.folder_repeats is not None or concept.repeats > 1 or concept.images_per_epoch or not read.images:
        return
    below = sorted(entry.name for entry in os.scandir(concept.images) if entry.is_dir() and not is_hidden(entry.name))
    name = next((name for name in (concept.images.name, *below) if repeated_folder(name)), None)
    if name is not None:
        times, kind = repeated_folder(name) or (1, "")
        use = f"({count_of(times, 'repeat')}, class '{kind}')"
        yield f"the name of {name} is not used {use}; set folder_repeats = true to use it, or false if it means nothing"


def dropped_embedding_findings(recipe: Recipe, captioned: list[Captioned]) -> Iterator[Finding]:
    """Warnings about embeddings that `tag_dropout` may drop, and about embeddings in captions of prior images."""
    distinct = {spelling(embedding.placeholder): embedding.placeholder for embedding in recipe.embeddings}
    replacer = Replacer(distinct.values())
    for index, (concept, read) in enumerate(zip(recipe.concepts, captioned, strict=True)):
        captions = [text for _, texts in read.images for text in texts]
        lost = [text for text in captions if concept.tag_dropout > 0 and _may_be_dropped(text, concept, replacer)]
        if lost:
            share = f"{len(lost)} of {count_of(len(captions), 'caption')}"
            where = f"{share} may lose the embedding, for example {lost[0][:60]!r}"
            text = f"{where}; move it into the first {count_of(concept.keep_tags, 'tag')}, or increase keep_tags"
            yield Finding(("concept", index, "tag_dropout"), text, "warning")
        used = (
            {embedding for text in captions for embedding in replacer.embeddings_in(text)} if concept.prior else set()
        )
        if used:
            text = f"captions of prior images contain {first_few(sorted(used), 3)}; use their class instead"
            yield Finding(("concept", index, "prior"), text, "warning")


def capital_findings(recipe: Recipe, family: Family | None) -> Iterator[Finding]:
    """Warnings about `capitals` without effect."""
    if family is None or "t5" in family.widths:
        return
    for index, concept in enumerate(recipe.concepts):
        if concept.capitals > 0:
            text = f"no effect: the tokenizers of {family.title} lower-case all text; remove it"
            yield Finding(("concept", index, "capitals"), text, "warning")


def _may_be_dropped(caption: str, concept: Concept, replacer: Replacer) -> bool:
    return any(replacer.embeddings_in(tag) for tag in split_tags(caption, concept)[1])


def caption_source_findings(recipe: Recipe, captioned: list[Captioned]) -> Iterator[Finding]:
    """Warnings about how captions are read: lines that are drawn, marks of other programs, keys without effect."""
    distinct = {spelling(embedding.placeholder): embedding.placeholder for embedding in recipe.embeddings}
    replacer = Replacer(distinct.values())
    for index, (concept, read) in enumerate(zip(recipe.concepts, captioned, strict=True)):
        for key in ("caption_lines", "caption_extension"):
            if concept.captions != "beside" and getattr(concept, key) not in ("auto", None):
                yield Finding(("concept", index, key), 'no effect without captions = "beside"; remove it', "warning")
        if concept.captions == "beside" and not concept.prior:
            text = _drawn_lines(read, replacer)
            if text:
                yield Finding(("concept", index, "captions"), text, "warning")
        yield from _marks(index, concept, [text for _, texts in read.images for text in texts])
        yield from _ambiguous_placeholders(index, concept, recipe)


SEPARATOR = "|||"
MARKS: dict[str, tuple[str, Callable[[str], Sequence[str]]]] = {  # key: what it is for, and what there is in a caption
    "wildcards": ("a wildcard; set wildcards = true to draw one of its parts for each sample", wildcards_in),
    "keep_separator": (
        f"which separates tags that are kept; set keep_separator = '{SEPARATOR}'",
        lambda text: text.count(SEPARATOR) * [SEPARATOR],
    ),
    "strip_weights": ("a weight, which training does not have; set strip_weights = true to remove weights", weights_in),
}


def _marks(index: int, concept: Concept, captions: list[str]) -> Iterator[Finding]:
    """Warnings about marks in captions that another program replaces, where no key says that they are replaced."""
    for key, (what, find) in MARKS.items():
        found = [mark[0] for mark in map(find, captions) if mark] if not getattr(concept, key) else []
        if found:
            share = f"{len(found)} of {count_of(len(captions), 'caption')}"
            yield Finding(("concept", index, key), f"{share} contain {found[0][:60]!r}, {what}", "warning")


def _ambiguous_placeholders(index: int, concept: Concept, recipe: Recipe) -> Iterator[Finding]:
    """Errors about placeholders that contain what a key replaces in captions."""
    for embedding in recipe.embeddings:
        name = embedding.placeholder
        if concept.wildcards and set(name) & set("{|}"):
            yield Finding(("concept", index, "wildcards"), f"'{name}' contains a mark of wildcards; rename it")
        if concept.keep_separator is not None and concept.keep_separator in name:
            yield Finding(("concept", index, "keep_separator"), f"'{name}' contains it; rename it")


def _drawn_lines(read: Captioned, replacer: Replacer) -> str:
    """About images with captions of which some lack the placeholder; empty if there are none."""
    lacking: list[tuple[Path, str]] = []
    for image, texts in read.images:
        found = [set(replacer.embeddings_in(text)) for text in texts]
        line = next((text for text, own in zip(texts, found, strict=True) if own != set().union(*found)), None)
        if line is not None:
            lacking.append((image, line))
    if not lacking:
        return ""
    image, line = lacking[0]
    several = count_of(sum(len(texts) > 1 for _, texts in read.images), "caption file")
    return (
        f"one line of a caption file is drawn for each sample, and in {len(lacking)} of {several} with several lines "
        f"the placeholder is not in all of them ({image.name}: {line[:60]!r}); add it to every line, or set "
        "caption_lines = 'join' or 'tags'"
    )
