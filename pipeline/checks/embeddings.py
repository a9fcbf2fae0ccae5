"""Checks of embeddings: placeholders, captions, base files, token limits, text encoders."""

from __future__ import annotations

import math
import re
from array import array
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
from ..recipe.problem import Finding, KeyPath
from ..text import count_of, did_you_mean, nearest

_CLIP = re.compile(r"[^\W\d_]+|\d|_+|[^\s\w]+")  # how CLIP's tokenizers split a text before they look up tokens
Units = tuple[str, ...]
MOST_HINTS = 5  # embeddings without captions for which similar texts are searched
_BRACKETED = re.compile(r"<[^<>\s][^<>]{0,60}>")


def name_findings(embeddings: tuple[EmbeddingSpec, ...]) -> Iterator[Finding]:
    """Placeholders that are identical or contain one another."""
    seen: dict[Units, str] = {}
    distinct: dict[str, KeyPath] = {}
    for index, embedding in enumerate(embeddings):
        key_path: KeyPath = ("embedding", index, "placeholder")
        same = seen.setdefault(spelling(embedding.placeholder), embedding.placeholder)
        if embedding.placeholder in distinct or same != embedding.placeholder:
            yield Finding(key_path, _same(embedding.placeholder, same))
        else:
            distinct[embedding.placeholder] = key_path
    by_parts = contained_in({embedding: spelling(embedding) for embedding in distinct})
    by_tokens = contained_in({embedding: tuple(_CLIP.findall(embedding.lower())) for embedding in distinct})
    for name, key_path in distinct.items():
        for short in by_parts[name]:
            text = f"'{name}' contains '{short}'; texts with '{name}' do not count as '{short}'"
            yield Finding(key_path, text, "warning")
        for short in by_tokens[name]:
            if short not in by_parts[name]:
                text = f"programs that match tokens find '{short}' in '{name}'; choose placeholders with other letters"
                yield Finding(key_path, text, "warning")


def template_findings(embeddings: tuple[EmbeddingSpec, ...], family: Family | None) -> Iterator[Finding]:
    """Placeholders that a prompt template may contain: language models get the caption inside a longer text."""
    if family is None or all(encoder.key.startswith(("clip", "t5", "umt5")) for encoder in family.encoders):
        return
    for index, embedding in enumerate(embeddings):
        name = embedding.placeholder
        if name.replace(" ", "").isalpha():
            text = f"'{name}' is a plain word, which the prompt template of {family.title} may contain; write <{name}>"
            yield Finding(("embedding", index, "placeholder"), text, "warning")


def _same(one: str, two: str) -> str:
    if one == two:
        return f"duplicate placeholder '{one}'; every embedding needs its own"
    return f"'{one}' and '{two}' are the same placeholder: case and number of spaces are ignored"


def contained_in(units: Mapping[str, Units]) -> dict[str, list[str]]:
    """For each embedding the others whose units are a contiguous part of its own."""
    by_units: dict[Units, list[str]] = {}
    for embedding, row in units.items():
        by_units.setdefault(row, []).append(embedding)
    found: dict[str, list[str]] = {}
    for embedding, row in units.items():
        parts = {row[at:end] for at in range(len(row)) for end in range(at + 1, len(row) + 1)}
        found[embedding] = sorted(other for part in parts for other in by_units.get(part, ()) if other != embedding)
    return found


def coverage(embeddings: tuple[EmbeddingSpec, ...], captions: list[str]) -> dict[str, int]:
    """Number of captions that contain each placeholder."""
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
    """Embeddings without captions, and unknown placeholders in captions and prompts.

    Skipped for embeddings if the captions of a concept cannot be read.
    """
    kinds = list(zip(recipe.concepts, captioned, strict=True))  # prior images contain no embedding
    captions = [text for concept, read in kinds if not concept.prior for _, texts in read.images for text in texts]
    complete = all(read.images for concept, read in kinds if not concept.prior)
    if captions and complete and any(options.embeddings for _, options in recipe.stages_with(TrainOptions)):
        found = coverage(recipe.embeddings, captions)
        hints = 0
        for index, embedding in enumerate(recipe.embeddings):
            key_path: KeyPath = ("embedding", index, "placeholder")
            count = found[embedding.placeholder]
            if not count:
                hints += 1
                hint = _similar(embedding.placeholder, captions) if hints <= MOST_HINTS else ""
                none = (
                    "the caption does not contain"
                    if len(captions) == 1
                    else f"none of the {len(captions)} captions contains"
                )
                text = f"{none} '{embedding.placeholder}'{hint}"
                yield Finding(key_path, text, "error" if embedding.train else "warning")
            elif count * 20 < len(captions) and len(recipe.embeddings) == 1:
                contain = "contains" if count == 1 else "contain"
                text = f"only {count} of the {len(captions)} captions {contain} '{embedding.placeholder}'"
                yield Finding(key_path, text, "warning")
    yield from _unknown_placeholders(recipe, captions)


def _similar(placeholder: str, captions: list[str]) -> str:
    """`; they contain '<emblam>' (9 times)`: the text in the captions that is most similar to the placeholder."""
    size = len(placeholder.split())
    rows: Counter[str] = Counter()
    for caption in captions[:2000]:
        units = caption.split()
        rows.update({" ".join(units[at : at + size]).strip(".,;:!?\"'()") for at in range(len(units) - size + 1)})
    known = [row for row, _ in rows.most_common(2000)]
    if size > 1:  # a common part ("a") alone does not make texts similar
        known = [row for row in known if _parts_similar(placeholder, row)]
    guess = nearest(placeholder, known)
    often = "once" if guess and rows[guess] == 1 else f"{rows[guess or '']} times"
    return f"; they contain '{guess}' ({often})" if guess else f"; the first is {captions[0][:60]!r}"


def _parts_similar(one: str, other: str) -> bool:
    """Whether both texts have the same number of parts and each part is similar."""
    parts, others = one.split(), other.split()
    return len(parts) == len(others) and all(nearest(part, [near]) for part, near in zip(parts, others, strict=True))


def _unknown_placeholders(recipe: Recipe, captions: list[str]) -> Iterator[Finding]:
    known = [embedding.placeholder for embedding in recipe.embeddings]
    lower = {embedding.lower() for embedding in known}
    texts = [(("samples", "prompts", number), prompt) for number, prompt in enumerate(recipe.samples.prompts)]
    for path, text in [*texts, (("samples", "negative"), recipe.samples.negative or "")]:
        for name in _BRACKETED.findall(text):
            if name.lower() not in lower:
                yield Finding(path, _unknown_text(name, known), "warning")
    seen = {name for caption in captions for name in _BRACKETED.findall(caption) if name.lower() not in lower}
    for name in sorted(seen)[:5]:
        yield Finding(("embedding",), f"captions contain {name}: {_unknown_text(name, known)}", "warning")


def _unknown_text(name: str, known: list[str]) -> str:
    guess = nearest(name, known)
    return f"{name} is not an embedding of this recipe" + (f"; did you mean '{guess}'?" if guess else "")


def base_findings(recipe: Recipe, family: Family | None) -> Iterator[Finding]:
    """Checks of base files."""
    for index, embedding in enumerate(recipe.embeddings):
        key_path: KeyPath = ("embedding", index)
        if embedding.base is None:
            for key in ("base_name", "resize"):
                if getattr(embedding, key) is not None:
                    yield Finding((*key_path, key), f"{key} has no effect without base; remove it or set base")
            continue
        from ..embeddings.initial import base_vectors, read_base

        try:
            loaded = read_base(embedding)
            keys = list(family.widths) if family else [key for key in loaded.vectors if not key.endswith("_out")]
            vectors = base_vectors(loaded, embedding, keys)
        except ConvertError as error:
            yield Finding((*key_path, "base"), str(error))
            continue
        for key, raw in vectors.items():
            if not all(map(math.isfinite, array("f", bytes(raw.data)))):
                text = f"{embedding.base} has values for {key} that are not finite numbers; use another file"
                yield Finding((*key_path, "base"), f"{embedding.placeholder}: {text}, or remove base")
            have, count = raw.shape[0], embedding.tokens or raw.shape[0]
            way = "cut" if have > count else "pad"
            if have != count and embedding.resize != way:
                text = f"the base has {count_of(have, 'vector')} for {key}; remove tokens, or set resize = '{way}'"
                yield Finding((*key_path, "tokens"), text)


SMALLEST_LIMIT = 75  # token limit of CLIP, without begin and end tokens


def truncation_findings(recipe: Recipe, captioned: list[Captioned]) -> Iterator[Finding]:
    """An error for each trained embedding that is beyond the token limit in all of its captions, and warnings for
    other truncated captions.

    The tokenizers are loaded only if captions are long enough; without them on this machine the run checks it.
    """
    captions = [text for concept in captioned for _, texts in concept.images for text in texts]
    if not _may_be_long(recipe, captions):
        return
    from ..models.tokenizers import light_tokenizers
    from .plan import make_plan

    try:
        plan = make_plan(recipe, light_tokenizers(recipe.model))
    except (StageError, ConvertError, RecipeError, ValueError):
        return  # reported by another check, or by the run
    truncated = set(plan.always_truncated)
    limits = " and ".join(f"{limit} tokens of {key}" for key, limit in plan.limits.items())
    for index, embedding in enumerate(recipe.embeddings):
        if embedding.placeholder in truncated:
            text = f"every caption is truncated before '{embedding.placeholder}' (limit {limits})"
            yield Finding(("embedding", index, "placeholder"), f"{text}; move it towards the start{plan.or_chunks}")
    if plan.truncation_warning:
        yield Finding(("concept",), plan.truncation_warning, "warning")
    yield from (Finding(("concept",), line, "warning") for line in plan.long_captions)


def _may_be_long(recipe: Recipe, captions: list[str]) -> bool:
    """Whether a caption may be longer than the limit, if every byte were a token."""
    sizes = {embedding.placeholder: _max_vectors(embedding) for embedding in recipe.embeddings}
    replacer = Replacer(sizes)
    return any(
        len(text.encode("utf-8", "replace")) + sum(sizes[one.embedding] for one in replacer.find(text)) > SMALLEST_LIMIT
        for text in captions
    )


def _max_vectors(embedding: EmbeddingSpec) -> int:
    """The maximum number of vectors of an embedding; unknown with a base file."""
    if embedding.base is not None:
        return SMALLEST_LIMIT
    return embedding.tokens or max(1, len(embedding.initial_text.encode("utf-8", "replace")))


def encoder_findings(recipe: Recipe, family: Family | None) -> Iterator[Finding]:
    """Checks of `encoders` in the inject stage, also against the export targets."""
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
            reason = refusal(program, layout, family, chosen)
            if reason:
                text = f"{program.title} cannot load an embedding with vectors for {', '.join(chosen)} only: {reason}"
                yield Finding(("stage", index, "targets", number), text)


def refusal(program: Program, layout: Layout, family: Family, chosen: list[str]) -> str:
    """Why a program does not load an embedding with vectors for these text encoders only; empty if it does."""
    for keys in layout.files:
        names = {keys[key].replace("{embedding}", "embedding"): family.widths[key] for key in keys if key in chosen}
        if not names:
            return "it needs one file per text encoder"
        tensors = {name: RawTensor("F32", (1, width), bytes(4 * width)) for name, width in names.items()}
        sizes = {key: family.widths[key] for key in keys} if len(layout.files) > 1 else family.widths
        reading = reads(program.name, Stored(Path("embedding.safetensors"), tensors), sizes)
        if reading.refusal:
            return reading.refusal
        vectors = next(iter(reading.embeddings.values()))
        if any(key in keys and key not in vectors for key in chosen):
            return "it does not find them"
    return ""
