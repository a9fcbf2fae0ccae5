"""What is wrong with the images and captions of a recipe. Decodes no image that seems to be whole."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from ...converters.families import Family
from ..data.captions import Captioned, collect_captions, source_problems
from ..data.files import IMAGES
from ..embeddings.placeholders import Replacer, spelling
from ..errors import StageError
from ..recipe.model import Concept, Recipe
from ..recipe.options import TrainOptions
from ..recipe.problem import Finding, Place
from ..text import did_you_mean_path

MOST = 10  # problems of one kind that are named one by one
WELL_SEEN = 0.5  # less of an image than this is worth a warning


def image_findings(recipe: Recipe, captioned: list[Captioned], *, look: bool = True) -> Iterator[Finding]:
    """What is wrong with the concepts. `captioned` is filled with what could be read, one for each concept.

    Without `look` no image is opened: how they are cut is unknown.
    """
    if not recipe.concepts and any(stage.kind == "train" for stage in recipe.stages):
        yield Finding(("concept",), "no images to train on; add a [[concept]] with images = a folder")
    for index, concept in enumerate(recipe.concepts):
        result = Captioned()
        captioned.append(result)
        yield from _concept(index, concept, recipe, result, look)
    if recipe.concepts and all(concept.prior for concept in recipe.concepts):
        yield Finding(("concept",), "every concept has prior = true; one shows the thing that is learned")


def batch_findings(recipe: Recipe, captioned: list[Captioned]) -> Iterator[Finding]:
    """Warnings about batches that an epoch cannot fill: none is filled up by showing an image twice."""
    shown = sum(
        concept.images_per_epoch or len(read.images) * concept.repeats
        for concept, read in zip(recipe.concepts, captioned, strict=True)
    )
    for index, options in recipe.stages_with(TrainOptions):
        if 0 < shown < options.batch_size and recipe.data.balance == "none":
            text = f"an epoch shows {shown} images, so batches hold no more; a concept's repeats makes epochs longer"
            yield Finding(("stage", index, "batch_size"), text, "warning")


def _concept(index: int, concept: Concept, recipe: Recipe, result: Captioned, look: bool) -> Iterator[Finding]:
    place: Place = ("concept", index)
    folder, where = concept.images, (*place, "images")
    if concept.generate is not None:
        yield from _generated(index, concept, recipe)
        if not os.path.exists(folder):
            return
    if not os.path.isdir(folder):  # unlike Path's own, these take a name that no file system does
        file = f"{folder} is a file; give the folder that holds the images"
        yield Finding(where, file if os.path.exists(folder) else f"{folder} does not exist{did_you_mean_path(folder)}")
        yield from (Finding((*place, "captions"), text) for text in source_problems(concept))
        return
    try:
        read = collect_captions(concept)
    except OSError as error:
        yield Finding(where, f"{folder} cannot be read: {error.strerror or error}")
        return
    vars(result).update(vars(read))
    if not read.images and not read.problems and concept.generate is None:
        yield Finding(where, f"{folder} holds no image ({_inside(folder)}); known: {', '.join(IMAGES)}")
    broken, odd = _looked_at(concept, recipe, read) if look else ([], [])
    yield from _some([Finding(where, text) for text in broken])
    yield from _some([Finding((*place, "captions"), text) for text in read.problems])
    yield from _some([Finding(where, text, "warning") for text in odd])
    yield from _some([Finding(where, text, "warning") for text in read.warnings])


def _generated(index: int, concept: Concept, recipe: Recipe) -> Iterator[Finding]:
    """Class images that the run draws: of the class, not of the thing, and captioned as they were asked for."""
    place: Place = ("concept", index)
    where = (*place, "generate")
    if not concept.prior:
        yield Finding(where, "the model can only draw what it knows: such images need prior = true")
    if concept.captions != "beside":
        yield Finding(where, 'each image\'s prompt is written beside it: captions must be "beside"')
    if any(other.images == concept.images for at, other in enumerate(recipe.concepts) if at != index):
        text = "they would be drawn among the images of another [[concept]]: give them a folder of their own"
        yield Finding((*place, "images"), text)
    for prompt in concept.generate.prompts if concept.generate else ():
        held = [embedding.placeholder for embedding in recipe.embeddings if embedding.placeholder in prompt]
        if held:
            yield Finding((*where, "prompts"), f"the untouched model does not know '{held[0]}'; name its class instead")


def _looked_at(concept: Concept, recipe: Recipe, captioned: Captioned) -> tuple[list[str], list[str]]:
    """Images that cannot be used, and those that are worth a warning, by what their first and last bytes say."""
    if not captioned.images:
        return [], []  # Pillow need not be loaded
    from ..data.buckets import visible_share
    from ..data.examples import cut_of, refuse_narrow
    from ..data.images import ENDINGS, inspect_image, refuse_truncated

    broken, odd = [], []
    edge = concept.resolution or _resolution(recipe)
    for path, _ in captioned.images:
        try:
            size, kind = inspect_image(path)
            cut = cut_of(size, concept, recipe.data, edge or 512)
            refuse_narrow(path, size, cut)
            refuse_truncated(path, kind)
            if path in captioned.masks:
                inspect_image(captioned.masks[path])
        except StageError as error:
            broken.append(str(error))
            continue
        if not path.name.lower().endswith(ENDINGS[kind]):
            odd.append(f"{path}: a {kind} file by another name; it is read as what it is")
        if visible_share(size, cut) < WELL_SEEN:
            way_out = "" if recipe.data.buckets else "; data.buckets = true keeps more"
            odd.append(
                f"{path}: {visible_share(size, cut):.0%} of its {size[0]}x{size[1]} pixels will be seen{way_out}"
            )
        elif edge and min(size) * 4 < edge:
            odd.append(f"{path}: {size[0]}x{size[1]} pixels are enlarged more than four times")
    return list(dict.fromkeys(broken)), odd


def _resolution(recipe: Recipe) -> int | None:
    """What the first train stage cuts images to, where it says so."""
    return next((options.resolution for _, options in recipe.stages_with(TrainOptions)), None)


def _some(findings: list[Finding]) -> Iterator[Finding]:
    yield from findings[:MOST]
    if len(findings) > MOST:
        yield Finding(findings[0].path, f"and {len(findings) - MOST} more like these", findings[0].severity)


def _inside(folder: Path) -> str:
    """What the folder has instead of images, by ending."""
    entries = [entry for entry in os.scandir(folder) if not entry.name.startswith(".")]
    ends = Counter(Path(entry.name).suffix.lower() or "no ending" for entry in entries if entry.is_file())
    folders = sum(entry.is_dir() for entry in entries)
    parts = [f"{count} {end}" for end, count in ends.most_common(3)]
    if folders:
        parts.append(f"{folders} folder{'s' * (folders > 1)}; recursive = true looks into folders")
    return ", ".join(parts) or "it is empty"


def shown_embedding_findings(recipe: Recipe, captioned: list[Captioned]) -> Iterator[Finding]:
    """Warnings about embeddings that `tag_dropout` may leave out, and about embeddings in captions of `prior`
    images.
    """
    distinct = {spelling(embedding.placeholder): embedding.placeholder for embedding in recipe.embeddings}
    replacer = Replacer(distinct.values())
    for index, (concept, read) in enumerate(zip(recipe.concepts, captioned, strict=True)):
        captions = [text for _, texts in read.images for text in texts]
        lost = [text for text in captions if concept.tag_dropout > 0 and _may_go(text, concept, replacer)]
        if lost:
            where = f"in {len(lost)} of {len(captions)} captions an embedding may be left out, as in {lost[0][:60]!r}"
            text = f"{where}; put it among the first keep_tags = {concept.keep_tags} tags, or raise keep_tags"
            yield Finding(("concept", index, "tag_dropout"), text, "warning")
        held = (
            sorted({embedding for text in captions for embedding in replacer.embeddings_in(text)})
            if concept.prior
            else []
        )
        if held:
            embeddings = ", ".join(held[:3])
            text = f"captions of prior images hold {embeddings}: the embedding is pulled towards what it should leave"
            yield Finding(("concept", index, "prior"), text, "warning")


def capital_findings(recipe: Recipe, family: Family | None) -> Iterator[Finding]:
    """Warnings about capitals that no text encoder of the model would see."""
    if family is None or "t5" in family.widths:
        return
    for index, concept in enumerate(recipe.concepts):
        if concept.capitals > 0:
            text = f"has no effect: the text encoders of {family.title} are told all letters small; leave it out"
            yield Finding(("concept", index, "capitals"), text, "warning")


def _may_go(caption: str, concept: Concept, replacer: Replacer) -> bool:
    tags = caption.split(concept.tag_separator)
    return any(replacer.embeddings_in(tag) for tag in tags[concept.keep_tags :])
