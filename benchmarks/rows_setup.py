"""Goal 11: how long until the tokenizer knows 1000 embeddings, beside one `add_tokens` call an embedding."""

from __future__ import annotations

import json
import random
import time
from typing import Any

from measure import Row, in_fresh_process, ratios
from scene import VECTORS, VOCABULARY

EMBEDDINGS = 1000
ROUNDS = 5


def rows() -> list[Row]:
    return [Row(**row) for row in in_fresh_process("rows_setup.py")]  # type: ignore[union-attr]


def make_tokenizer() -> Any:
    """A CLIP tokenizer of full size with made-up merges."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CLIPTokenizer

    letters = sorted(ByteLevel.alphabet())
    pieces = [*letters, *(letter + "</w>" for letter in letters)]
    vocabulary, merges, draw = dict.fromkeys(pieces), [], random.Random(0)
    starts = list(letters)
    while len(vocabulary) < VOCABULARY - 2:
        left, right = draw.choice(starts), draw.choice(pieces)
        if left + right not in vocabulary and len(left + right) < 12:
            vocabulary[left + right] = None
            merges.append((left, right))
            if not right.endswith("</w>"):
                starts.append(left + right)
    embeddings = [*vocabulary, "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer({embedding: n for n, embedding in enumerate(embeddings)}, merges)


def measured() -> list[Row]:
    from pivotune.pipeline.embeddings.injection import EmbeddingTokenizer
    from pivotune.pipeline.embeddings.placeholders import Replacer

    names = [f"<embedding-{n}>" for n in range(EMBEDDINGS)]
    slots = {name: range(n * VECTORS, (n + 1) * VECTORS) for n, name in enumerate(names)}
    added, copied, theirs = [], [], []
    for _ in range(ROUNDS):
        tokenizer = make_tokenizer()
        begin = time.process_time_ns()
        replacer = Replacer(names)
        between = time.process_time_ns()
        known = EmbeddingTokenizer(tokenizer, replacer)
        ready = time.process_time_ns()
        known.activate(slots)  # all embeddings in one batch: the most that can be asked
        end = time.process_time_ns()
        for name in names:
            tokenizer.add_tokens([f"{name}-{n}" for n in range(VECTORS)])
        theirs.append(float(time.process_time_ns() - end))
        added.append(float(between - begin + end - ready))
        copied.append(float(end - begin))
    assert len(tokenizer) == len(known) == VOCABULARY + VECTORS * EMBEDDINGS
    of = f"{EMBEDDINGS} embeddings added to a tokenizer"
    return [
        Row(of, "<= 1/20 of one call an embedding", 1 / 20, ratios(added, theirs)),
        Row(
            f"{of}, with the copy that leaves the model's own unchanged",
            "< one call an embedding",
            1.0,
            ratios(copied, theirs),
        ),
    ]


if __name__ == "__main__":
    print(json.dumps([vars(row) for row in measured()]))
