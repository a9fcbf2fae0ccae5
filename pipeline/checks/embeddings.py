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
from ..recipe.model import Recipe, Word
from ..recipe.problem import Finding, Place
from ..text import did_you_mean, nearest

_CLIP = re.compile(r"[^\W\d_]+|\d|_+|[^\s\w]+")  # how CLIP's tokenizers cut a text before they look words up
Units = tuple[str, ...]
MOST_HINTS = 5  # missing words for which something similar is looked for in the captions
_BRACKETED = re.compile(r"<[^<>\s][^<>]{0,60}>")


def name_findings(words: tuple[Word, ...]) -> Iterator[Finding]:
    """Placeholders that are the same word, or one of which holds another."""
    seen: dict[Units, str] = {}
    distinct: dict[str, Place] = {}
    for index, word in enumerate(words):
        place: Place = ("embedding", index, "placeholder")
        same = seen.setdefault(spelling(word.placeholder), word.placeholder)
        if word.placeholder in distinct or same != word.placeholder:
            yield Finding(place, _same(word.placeholder, same))
        else:
            distinct[word.placeholder] = place
    whole = holding({word: spelling(word) for word in distinct})
    tokens = holding({word: tuple(_CLIP.findall(word.lower())) for word in distinct})
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
        return f"'{one}' stands here twice; a word needs its own placeholder"
    return f"'{one}' and '{two}' are the same word: case and the number of blanks make no difference"


def holding(units: Mapping[str, Units]) -> dict[str, list[str]]:
    """For each word the other words whose units stand in a row among its own."""
    by_units: dict[Units, list[str]] = {}
    for word, row in units.items():
        by_units.setdefault(row, []).append(word)
    found: dict[str, list[str]] = {}
    for word, row in units.items():
        parts = {row[at:end] for at in range(len(row)) for end in range(at + 1, len(row) + 1)}
        found[word] = sorted(other for part in parts for other in by_units.get(part, ()) if other != word)
    return found


def coverage(words: tuple[Word, ...], captions: list[str]) -> dict[str, int]:
    """How many of the captions hold each placeholder."""
    first: dict[tuple[str, ...], str] = {}
    for word in words:
        first.setdefault(spelling(word.placeholder), word.placeholder)
    replacer = Replacer(first.values())
    found = dict.fromkeys(first.values(), 0)
    for caption in captions:
        for placeholder in replacer.words_in(caption):
            found[placeholder] += 1
    return {word.placeholder: found[first[spelling(word.placeholder)]] for word in words}


def caption_findings(recipe: Recipe, captioned: list[Captioned]) -> Iterator[Finding]:
    """Words that no caption holds, and what looks like a word in captions and prompts but is none.

    Where the captions of a concept cannot be read, nobody knows what they hold.
    """
    kinds = list(zip(recipe.concepts, captioned, strict=True))  # prior pictures, of what should stay, show no word
    captions = [text for concept, read in kinds if not concept.prior for _, texts in read.pictures for text in texts]
    whole = all(read.pictures for concept, read in kinds if not concept.prior)
    if captions and whole and any(stage.kind == "train" and stage.options["embeddings"] for stage in recipe.stages):
        found = coverage(recipe.words, captions)
        hints = 0
        for index, word in enumerate(recipe.words):
            place: Place = ("embedding", index, "placeholder")
            count = found[word.placeholder]
            if not count:
                hints += 1
                hint = _similar(word.placeholder, captions) if hints <= MOST_HINTS else ""
                text = f"none of {_captions(len(captions))} holds '{word.placeholder}'{hint}"
                yield Finding(place, text, "error" if word.train else "warning")
            elif count * 20 < len(captions) and len(recipe.words) == 1:
                yield Finding(place, f"only {count} of {_captions(len(captions))} hold '{word.placeholder}'", "warning")
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
        known = [row for row in known if _words_alike(placeholder, row)]
    guess = nearest(placeholder, known)
    often = "once" if guess and rows[guess] == 1 else f"{rows[guess or '']} times"
    return f"; they hold '{guess}' ({often})" if guess else f"; the first is {captions[0][:60]!r}"


def _words_alike(one: str, other: str) -> bool:
    """Whether each word resembles the one in its place."""
    words, others = one.split(), other.split()
    return len(words) == len(others) and all(nearest(word, [at]) for word, at in zip(words, others, strict=True))


def _strangers(recipe: Recipe, captions: list[str]) -> Iterator[Finding]:
    known = [word.placeholder for word in recipe.words]
    lower = {word.lower() for word in known}
    for number, prompt in enumerate(recipe.samples.prompts):
        for name in _BRACKETED.findall(prompt):
            if name.lower() not in lower:
                yield Finding(("samples", "prompts", number), _stranger(name, known), "warning")
    seen = {name for caption in captions for name in _BRACKETED.findall(caption) if name.lower() not in lower}
    for name in sorted(seen)[:5]:
        yield Finding(("embedding",), f"captions hold {name}: {_stranger(name, known)}", "warning")


def _stranger(name: str, known: list[str]) -> str:
    guess = nearest(name, known)
    return f"{name} is no word of this recipe" + (f"; did you mean '{guess}'?" if guess else "")


def base_findings(recipe: Recipe, family: Family | None) -> Iterator[Finding]:
    """What is wrong with the bases of the recipe's words."""
    for index, word in enumerate(recipe.words):
        place: Place = ("embedding", index)
        if word.base is None:
            for key in ("base_name", "resize"):
                if getattr(word, key) is not None:
                    yield Finding((*place, key), f"{key} says something of a base, and this word has none")
            continue
        from ..embeddings.initial import base_vectors, read_base

        try:
            embedding = read_base(word)
            keys = list(family.widths) if family else [key for key in embedding.vectors if not key.endswith("_out")]
            vectors = base_vectors(embedding, word, keys)
        except ConvertError as error:
            yield Finding((*place, "base"), str(error))
            continue
        for key, raw in vectors.items():
            have, count = raw.shape[0], word.tokens or raw.shape[0]
            way = "cut" if have > count else "pad"
            if have != count and word.resize != way:
                text = f"the base has {have} vectors for {key}; leave tokens out, or say resize = '{way}'"
                yield Finding((*place, "tokens"), text)


LEAST = 75  # tokens that any encoder of a family reads, its begin and end tokens not counted


def unseen_findings(recipe: Recipe, captioned: list[Captioned]) -> Iterator[Finding]:
    """An error for each trained word that no encoder's limit lets through in any caption that holds it.

    The model's tokenizers are read only where captions are long enough for that; where they are not on this machine,
    the run itself finds it.
    """
    captions = [text for concept in captioned for _, texts in concept.pictures for text in texts]
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
    for index, word in enumerate(recipe.words):
        if word.train and word.placeholder in gone:
            text = f"'{word.placeholder}' stands behind the token limit ({limits}) in every caption that holds it"
            yield Finding(("embedding", index, "placeholder"), f"{text}; put it further forward")


def _may_be_unseen(recipe: Recipe, captions: list[str]) -> bool:
    """Whether a trained word may be behind the limit everywhere, if each byte before it were a token."""
    sizes = {word.placeholder: _most(word) for word in recipe.words}
    replacer = Replacer(sizes)
    held, seen = set[str](), set[str]()
    for text in captions:
        end, total = 0, 0
        for found in replacer.find(text):
            total += 1 + len(text[end : found.start].encode("utf-8", "replace")) + sizes[found.word]
            end = found.end
            held.add(found.word)
            if total <= LEAST:
                seen.add(found.word)
    return any(word.train and word.placeholder in held - seen for word in recipe.words)


def _most(word: Word) -> int:
    """Vectors that a word has at most; of one that goes on from a file nobody knows."""
    if word.base is not None:
        return LEAST
    return word.tokens or max(1, len(word.initial_text.encode("utf-8", "replace")))


def encoder_findings(recipe: Recipe, family: Family | None) -> Iterator[Finding]:
    """What is wrong with `encoders` of the inject stage, and what the export's targets make of it."""
    if family is None:
        return
    for index, stage in enumerate(recipe.stages):
        chosen = stage.options.get("encoders") if stage.kind == "inject" else None
        if chosen is None:
            continue
        for number, key in enumerate(chosen):
            if key not in family.widths:
                text = f"{family.title} has no text encoder '{key}'{did_you_mean(key, family.widths)}"
                yield Finding(("stage", index, "encoders", number), text)
        if set(chosen) < family.widths.keys():
            yield from _targets(recipe, family, [key for key in family.widths if key in chosen])


def _targets(recipe: Recipe, family: Family, chosen: list[str]) -> Iterator[Finding]:
    for index, stage in enumerate(recipe.stages):
        for number, target in enumerate(stage.options["targets"] if stage.kind == "export" else ()):
            program = programs()[target]
            layout = program.layouts.get(family.name)
            if layout is None:
                continue
            why = refusal(program, layout, family, chosen)
            if why:
                text = f"{program.title} cannot load a word that has vectors for {', '.join(chosen)} only: {why}"
                yield Finding(("stage", index, "targets", number), text)


def refusal(program: Program, layout: Layout, family: Family, chosen: list[str]) -> str:
    """Why a program would not load a word with vectors for these encoders; empty when it would."""
    for keys in layout.files:
        held = {keys[key].replace("{word}", "word"): family.widths[key] for key in keys if key in chosen}
        if not held:
            return "it takes a file for each encoder"
        tensors = {name: RawTensor("F32", (1, width), bytes(4 * width)) for name, width in held.items()}
        sizes = {key: family.widths[key] for key in keys} if len(layout.files) > 1 else family.widths
        reading = reads(program.name, Stored(Path("word.safetensors"), tensors), sizes)
        if reading.breaks:
            return reading.breaks
        vectors = next(iter(reading.words.values()))
        if any(key in keys and key not in vectors for key in chosen):
            return "it would not find them"
    return ""
