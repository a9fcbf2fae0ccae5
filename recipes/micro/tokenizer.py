"""CLIP's tokenizer over a tiny vocabulary: all bytes, and one token for each word of the grammar."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

from transformers import CLIPTokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

from .captions import vocabulary

END = "</w>"
START_MARK, END_MARK = "<|startoftext|>", "<|endoftext|>"


def build_tokenizer() -> CLIPTokenizer:
    """The tokenizer; `vocab=` and `merges=`, for it ignores files given by name."""
    merges = word_merges(vocabulary())
    return CLIPTokenizer(vocab=vocab(merges), merges=merges, model_max_length=77)


def word_merges(words: list[str]) -> list[tuple[str, str]]:
    """Merges that make one token of each word.

    Every word is cut by the merges found so far, and what is left is joined from the left. New merges come
    last, so they cannot change how an earlier word is put together.
    """
    merges: list[tuple[str, str]] = []
    for word in words:
        pieces = cut([*word[:-1], word[-1] + END], merges)
        while len(pieces) > 1:
            merges.append((pieces[0], pieces[1]))
            pieces[:2] = [pieces[0] + pieces[1]]
    return merges


def cut(pieces: list[str], merges: list[tuple[str, str]]) -> list[str]:
    """Join the pieces by the merges, the earliest merge first, as byte-pair encoding does."""
    ranks = {pair: rank for rank, pair in enumerate(merges)}
    while len(pieces) > 1:
        pairs = list(pairwise(pieces))
        best = min(pairs, key=lambda pair: ranks.get(pair, len(ranks)))
        if best not in ranks:
            break
        at = pairs.index(best)
        pieces[at : at + 2] = ["".join(best)]
    return pieces


def vocab(merges: list[tuple[str, str]]) -> dict[str, int]:
    """Token to id: bytes, bytes that end a word, merges, and the two marks last, as CLIP has it."""
    letters = list(bytes_to_unicode().values())
    tokens = [*letters, *(letter + END for letter in letters), *("".join(pair) for pair in merges)]
    return {token: number for number, token in enumerate([*tokens, START_MARK, END_MARK])}


def save_tokenizer(tokenizer: CLIPTokenizer, folder: Path) -> None:
    """Save it, with the two files that older readers ask for beside tokenizer.json."""
    tokenizer.save_pretrained(folder)
    merges = word_merges(vocabulary())
    (folder / "vocab.json").write_text(json.dumps(vocab(merges), ensure_ascii=False), encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
