"""What is wrong with the embeddings of a recipe: placeholders, captions, base files, tokens, encoders."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

from ...converters.errors import ConvertError
from ...converters.families import Family
from ...converters.programs import Layout, Program, programs, reads
from ...converters.stored import Stored
from ...converters.tensor import RawTensor
from ..data.captions import Captioned
from ..embeddings.placeholders import Replacer, spelling
from ..errors import RecipeError, StageError
from ..recipe.model import EmbeddingSpec, Recipe
from ..recipe.options import ExportOptions, InjectOptions, TrainOptions
from ..recipe.problem import Finding, Place
from ..text import did_you_mean, nearest

_CLIP = re.compile(r"[^\W\d_]+|\d|_+|[^\s\w]+")  # how CLIP's tokenizers cut a text before they look embeddings up
Units = tuple[str, ...]
MOST_HINTS = 5  # missing embeddings for which something similar is looked for in the captions
_BRACKETED = re.compile(r"<[^<>\s][^<>]{0,60}>")


def name_findings(embeddings: tuple[EmbeddingSpec, ...]) -> Iterator[Finding]:
    """Placeholders that are the same embedding, or one of which holds another."""
    seen: dict[Units, str] = {}
    distinct: dict[str, Place] = {}
    for index, embedding in enumerate(embeddings):
        place: Place = ("embedding", index, "placeholder")
        same = seen.setdefault(spelling(embedding.placeholder), embedding.placeholder)
        if embedding.placeholder in distinct or same != embedding.placeholder:
            yield Finding(place, _same(embedding.placeholder, same))
        else:
            distinct[embedding.placeholder] = place
    whole = holding({embedding: spelling(embedding) for embedding in distinct})
    tokens = holding({embedding: tuple(_CLIP.findall(embedding.lower())) for embedding in distinct})
    for name, place in distinct.items():
        for short in whole[name]:
            text = f"'{name}' holds '{short}': where the long one stands the short one is not looked for"
            yield Finding(place, text, "warning")
        for short in tokens[name]:
            if short not in whole[name]:
                text = f"programs that look for tokens find '{short}' in '{name}'; make them differ in letters"
                yield Finding(place, text, "warning")


def _same(one: str, two: str) -> str:
    if one == two:
        return f"'{one}' stands here twice; an embedding needs its own placeholder"
    return f"'{one}' and '{two}' are the same embedding: case and the number of blanks make no difference"


def holding(units: Mapping[str, Units]) -> dict[str, list[str]]:
    """For each embedding the other embeddings whose units stand in a row among its own."""
    by_units: dict[Units, list[str]] = {}
    for embedding, row in units.items():
        by_units.setdefault(row, []).append(embedding)
    found: dict[str, list[str]] = {}
    for embedding, row in units.items():
        parts = {row[at:end] for at in range(len(row)) for end in range(at + 1, len(row) + 1)}
        found[embedding] = sorted(other for part in parts for other in by_units.get(part, ()) if other != embedding)
    return found


def coverage(embeddings: tuple[EmbeddingSpec, ...], captions: list[str]) -> dict[str, int]:
    """How many of the captions hold each placeholder."""
    first: dict[tuple[str, ...], str] = {}
    for embedding in embeddings:
        first.setdefault(spelling(embedding.placeholder), embedding.placeholder)
    replacer = Replacer(first.values())
    found = dict.fromkeys(first.values(), 0)
    for caption in captions:
        for placeholder in replacer.embeddings_in(caption):
            found[placeholder] += 1
    return {embedding.placeholder: found[first[spelling(embedding.placeholder)]] for embedding in embeddings}


def caption_findings(recipe: Recipe, captioned: list[Captioned]) -> Iterator[Finding]:
    """Embeddings that no caption holds, and what looks like an embedding in captions and prompts but is none.

    Where the captions of a concept cannot be read, nobody knows what they hold.
    """
    kinds = list(zip(recipe.concepts, captioned, strict=True))  # prior images, of what should stay, show no embedding
    captions = [text for concept, read in kinds if not concept.prior for _, texts in read.images for text in texts]
    whole = all(read.images for concept, read in kinds if not concept.prior)
    if captions and whole and any(options.embeddings for _, options in recipe.stages_with(TrainOptions)):
        found = coverage(recipe.embeddings, captions)
        hints = 0
        for index, embedding in enumerate(recipe.embeddings):
            place: Place = ("embedding", index, "placeholder")
            count = found[embedding.placeholder]
            if not count:
                hints += 1
                hint = _similar(embedding.placeholder, captions) if hints <= MOST_HINTS else ""
                text = f"none of {_captions(len(captions))} holds '{embedding.placeholder}'{hint}"
                yield Finding(place, text, "error" if embedding.train else "warning")
            elif count * 20 < len(captions) and len(recipe.embeddings) == 1:
                yield Finding(
                    place, f"only {count} of {_captions(len(captions))} hold '{embedding.placeholder}'", "warning"
                )
    yield from _strangers(recipe, captions)


def _captions(count: int) -> str:
    return "the caption" if count == 1 else f"the {count} captions"


def _similar(placeholder: str, captions: list[str]) -> str:
    """`; they hold '<emblam>' (9 times)`: the captions' own spelling of something like the placeholder."""
    size = len(placeholder.split())
    rows: Counter[str] = Counter()
    for caption in captions[:2000]:
        units = caption.split()
        rows.update({" ".join(units[at : at + size]).strip(".,;:!?\"'()") for at in range(len(units) - size + 1)})
    known = [row for row, _ in rows.most_common(2000)]
    if size > 1:  # what is the same in both ("a") makes nothing of the rest alike
        known = [row for row in known if _embeddings_alike(placeholder, row)]
    guess = nearest(placeholder, known)
    often = "once" if guess and rows[guess] == 1 else f"{rows[guess or '']} times"
    return f"; they hold '{guess}' ({often})" if guess else f"; the first is {captions[0][:60]!r}"


def _embeddings_alike(one: str, other: str) -> bool:
    """Whether each embedding resembles the one in its place."""
    embeddings, others = one.split(), other.split()
    return len(embeddings) == len(others) and all(
        nearest(embedding, [at]) for embedding, at in zip(embeddings, others, strict=True)
    )


def _strangers(recipe: Recipe, captions: list[str]) -> Iterator[Finding]:
    known = [embedding.placeholder for embedding in recipe.embeddings]
    lower = {embedding.lower() for embedding in known}
    for number, prompt in enumerate(recipe.samples.prompts):
        for name in _BRACKETED.findall(prompt):
            if name.lower() not in lower:
                yield Finding(("samples", "prompts", number), _stranger(name, known), "warning")
    seen = {name for caption in captions for name in _BRACKETED.findall(caption) if name.lower() not in lower}
    for name in sorted(seen)[:5]:
        yield Finding(("embedding",), f"captions hold {name}: {_stranger(name, known)}", "warning")


def _stranger(name: str, known: list[str]) -> str:
    guess = nearest(name, known)
    return f"{name} is no embedding of this recipe" + (f"; did you mean '{guess}'?" if guess else "")


def base_findings(recipe: Recipe, family: Family | None) -> Iterator[Finding]:
    """What is wrong with the bases of the recipe's embeddings."""
    for index, embedding in enumerate(recipe.embeddings):
        place: Place = ("embedding", index)
        if embedding.base is None:
            for key in ("base_name", "resize"):
                if getattr(embedding, key) is not None:
                    yield Finding((*place, key), f"{key} says something of a base, and this embedding has none")
            continue
        from ..embeddings.initial import base_vectors, read_base

        try:
            loaded = read_base(embedding)
            keys = list(family.widths) if family else [key for key in loaded.vectors if not key.endswith("_out")]
            vectors = base_vectors(loaded, embedding, keys)
        except ConvertError as error:
            yield Finding((*place, "base"), str(error))
            continue
        for key, raw in vectors.items():
            have, count = raw.shape[0], embedding.tokens or raw.shape[0]
            way = "cut" if have > count else "pad"
            if have != count and embedding.resize != way:
                text = f"the base has {have} vectors for {key}; leave tokens out, or say resize = '{way}'"
                yield Finding((*place, "tokens"), text)


LEAST = 75  # tokens that any encoder of a family reads, its begin and end tokens not counted


def unseen_findings(recipe: Recipe, captioned: list[Captioned]) -> Iterator[Finding]:
    """An error for each trained embedding that no encoder's limit lets through in any caption that holds it.

    The model's tokenizers are read only where captions are long enough for that; where they are not on this machine,
    the run itself finds it.
    """
    captions = [text for concept in captioned for _, texts in concept.images for text in texts]
    if not _may_be_unseen(recipe, captions):
        return
    from ..models.tokenizers import light_tokenizers
    from .plan import make_plan

    try:
        plan = make_plan(recipe, light_tokenizers(recipe.model))
    except (StageError, ConvertError, RecipeError, ValueError):
        return  # said by another check, or by the run
    gone = set(plan.never_seen)
    limits = " and ".join(f"{limit} of {key}" for key, limit in plan.limits.items())
    for index, embedding in enumerate(recipe.embeddings):
        if embedding.train and embedding.placeholder in gone:
            text = f"'{embedding.placeholder}' stands behind the token limit ({limits}) in every caption that holds it"
            yield Finding(("embedding", index, "placeholder"), f"{text}; put it further forward")


def _may_be_unseen(recipe: Recipe, captions: list[str]) -> bool:
    """Whether a trained embedding may be behind the limit everywhere, if each byte before it were a token."""
    sizes = {embedding.placeholder: _most(embedding) for embedding in recipe.embeddings}
    replacer = Replacer(sizes)
    held, seen = set[str](), set[str]()
    for text in captions:
        end, total = 0, 0
        for found in replacer.find(text):
            total += 1 + len(text[end : found.start].encode("utf-8", "replace")) + sizes[found.embedding]
            end = found.end
            held.add(found.embedding)
            if total <= LEAST:
                seen.add(found.embedding)
    return any(embedding.train and embedding.placeholder in held - seen for embedding in recipe.embeddings)


def _most(embedding: EmbeddingSpec) -> int:
    """Vectors that an embedding has at most; of one that goes on from a file nobody knows."""
    if embedding.base is not None:
        return LEAST
    return embedding.tokens or max(1, len(embedding.initial_text.encode("utf-8", "replace")))


def encoder_findings(recipe: Recipe, family: Family | None) -> Iterator[Finding]:
    """What is wrong with `encoders` of the inject stage, and what the export's targets make of it."""
    if family is None:
        return
    for index, options in recipe.stages_with(InjectOptions):
        chosen = options.encoders
        if chosen is None:
            continue
        for number, key in enumerate(chosen):
            if key not in family.widths:
                text = f"{family.title} has no text encoder '{key}'{did_you_mean(key, family.widths)}"
                yield Finding(("stage", index, "encoders", number), text)
        if set(chosen) < family.widths.keys():
            yield from _targets(recipe, family, [key for key in family.widths if key in chosen])


def _targets(recipe: Recipe, family: Family, chosen: list[str]) -> Iterator[Finding]:
    for index, options in recipe.stages_with(ExportOptions):
        for number, target in enumerate(options.targets):
            program = programs()[target]
            layout = program.layouts.get(family.name)
            if layout is None:
                continue
            why = refusal(program, layout, family, chosen)
            if why:
                text = f"{program.title} cannot load an embedding that has vectors for {', '.join(chosen)} only: {why}"
                yield Finding(("stage", index, "targets", number), text)


def refusal(program: Program, layout: Layout, family: Family, chosen: list[str]) -> str:
    """Why a program would not load an embedding with vectors for these encoders; empty when it would."""
    for keys in layout.files:
        held = {keys[key].replace("{embedding}", "embedding"): family.widths[key] for key in keys if key in chosen}
        if not held:
            return "it takes a file for each encoder"
        tensors = {name: RawTensor("F32", (1, width), bytes(4 * width)) for name, width in held.items()}
        sizes = {key: family.widths[key] for key in keys} if len(layout.files) > 1 else family.widths
        reading = reads(program.name, Stored(Path("embedding.safetensors"), tensors), sizes)
        if reading.refusal:
            return reading.refusal
        vectors = next(iter(reading.embeddings.values()))
        if any(key in keys and key not in vectors for key in chosen):
            return "it would not find them"
    return ""
