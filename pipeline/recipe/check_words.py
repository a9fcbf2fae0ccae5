"""Placeholders: can they be told apart, and do captions hold them?"""

from __future__ import annotations

import re
from collections.abc import Iterator

from ..words.placeholders import Replacer, spelling
from .captions import Captioned
from .model import Recipe, Word
from .nearest import nearest
from .problem import Finding, Place

_CLIP = re.compile(r"[^\W\d_]+|\d|_+|[^\s\w]+")  # how CLIP's tokenizers cut a text before they look words up
_BRACKETED = re.compile(r"<[^<>\s][^<>]{0,60}>")


def name_findings(words: tuple[Word, ...]) -> Iterator[Finding]:
    """Placeholders that are the same word, or one of which holds another."""
    known: dict[tuple[str, ...], str] = {}
    for index, word in enumerate(words):
        place: Place = ("embedding", index, "placeholder")
        same = known.get(spelling(word.placeholder))
        if same is not None:
            yield Finding(place, _same(word.placeholder, same))
            continue
        for other in known.values():
            yield from (Finding(place, text, "warning") for text in _pair(word.placeholder, other))
        known[spelling(word.placeholder)] = word.placeholder


def _same(one: str, two: str) -> str:
    if one == two:
        return f"'{one}' stands here twice; a word needs its own placeholder"
    return f"'{one}' and '{two}' are the same word: case and the number of blanks make no difference"


def _pair(one: str, two: str) -> Iterator[str]:
    long, short = sorted((one, two), key=len, reverse=True)
    if _holds(spelling(long), spelling(short)):
        yield f"'{long}' holds '{short}': where the long one stands the short one is not looked for"
    elif _holds(tuple(_CLIP.findall(long.lower())), tuple(_CLIP.findall(short.lower()))):
        yield f"programs that look for tokens find '{short}' in '{long}'; make them differ in letters"


def _holds(long: tuple[str, ...], short: tuple[str, ...]) -> bool:
    size = len(short)
    return any(long[at : at + size] == short for at in range(len(long) - size + 1))


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
    """Words that no caption holds, and what looks like a word in captions and prompts but is none."""
    captions = [text for concept in captioned for _, texts in concept.pictures for text in texts]
    if captions and any(stage.kind == "train" and stage.options["embeddings"] for stage in recipe.stages):
        found = coverage(recipe.words, captions)
        for index, word in enumerate(recipe.words):
            if not found[word.placeholder]:
                severity = "error" if word.train else "warning"
                text = f"none of {_captions(len(captions))} holds '{word.placeholder}'"
                yield Finding(
                    ("embedding", index, "placeholder"), text + _similar(word.placeholder, captions), severity
                )
            elif found[word.placeholder] * 20 < len(captions) and len(recipe.words) == 1:
                text = f"only {found[word.placeholder]} of {_captions(len(captions))} hold '{word.placeholder}'"
                yield Finding(("embedding", index, "placeholder"), text, "warning")
    yield from _strangers(recipe, captions)


def _captions(count: int) -> str:
    return "the caption" if count == 1 else f"the {count} captions"


def _similar(placeholder: str, captions: list[str]) -> str:
    """`; did you mean '<emblam>' (in 9)?` with the captions' own spelling of something like the placeholder."""
    size = len(placeholder.split())
    candidates: dict[str, int] = {}
    for caption in captions[:2000]:
        units = caption.split()
        for row in {" ".join(units[at : at + size]).strip(".,;:!?\"'()") for at in range(len(units) - size + 1)}:
            candidates[row] = candidates.get(row, 0) + 1
    guess = nearest(placeholder, candidates)
    return f"; they hold '{guess}' ({candidates[guess]} times)" if guess else f"; the first is {captions[0][:60]!r}"


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
