"""The pictures and captions of a run, as its manifest has them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..data.captions import Captioned, read_concept
from ..recipe.model import Recipe
from ..words.placeholders import Replacer
from .hashes import file_hashes, shown_path


def data_facts(recipe: Recipe) -> dict[str, Any]:
    """The pictures and captions by hash, and the share of the captions that hold each word.

    Raises RecipeError when a picture or caption that was there for the check is gone.
    """
    read = [read_concept(concept) for concept in recipe.concepts]
    captions = [caption for concept in read for _, texts in concept.pictures for caption in texts]
    held = Counter(word for _, words in _words_in(recipe, read) for word in words)
    pictures = list(dict.fromkeys(path for concept in read for path, _ in concept.pictures))
    others = dict.fromkeys(path for concept in read for path in (*concept.files, *concept.masks.values()))
    return {
        "pictures": len(pictures),
        "concepts": [len(concept.pictures) for concept in read],
        "files": file_hashes([*pictures, *others], recipe.path.parent),
        "captions": captions[:5],
        "coverage": {word.placeholder: held[word.placeholder] / max(1, len(captions)) for word in recipe.words},
    }


def pictures_of_words(recipe: Recipe) -> dict[str, list[str]]:
    """Each word's pictures: those of whose captions one holds it. Opens none of them; raises as `data_facts` does."""
    shown: dict[str, list[str]] = {word.placeholder: [] for word in recipe.words}
    for path, words in _words_in(recipe, [read_concept(concept) for concept in recipe.concepts]):
        for word in dict.fromkeys(words):
            shown[word].append(shown_path(path, recipe.path.parent))
    return shown


def _words_in(recipe: Recipe, read: Sequence[Captioned]) -> list[tuple[Path, list[str]]]:
    """Each picture with the words of its captions, as often as captions hold them."""
    replacer = Replacer([word.placeholder for word in recipe.words])
    return [
        (path, [word for text in texts for word in replacer.words_in(text)])
        for concept in read
        for path, texts in concept.pictures
    ]
