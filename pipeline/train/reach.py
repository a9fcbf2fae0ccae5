"""Checks that a gradient reaches every vector of an embedding, and says why not: truncated captions, black masks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from ..data.examples import Example
from ..data.latents import Latents
from ..embeddings.chunks import chunks_of
from ..embeddings.initial import TokenizedTexts
from ..embeddings.truncation import count_tokens
from ..errors import StageError
from ..models.tokenizers import token_limit
from .setup import Training

TRUNCATED = "all its captions are truncated before it (pivotune plan lists them); move it towards the start"
MASKED = (
    "the masks of all its images are black, so the loss counts nowhere; white is where it counts: invert them, or set "
    "objective.unmasked_weight"
)
UNUSED = "the model does not use this encoder"


def require_reach(training: Training, captions: Sequence[str], numbers: Sequence[int]) -> None:
    """StageError when a vector of an embedding got no gradient in a step of these captions and micro-batches.

    An embedding that is truncated or masked in them passes if it is not so elsewhere in the data: it is checked again
    when it is sampled next.
    """
    missed = training.embeddings.missed if training.embeddings is not None else {}
    for key, vectors in missed.items():
        for name, lost in sorted(vectors.items()):
            why = _reason(training, key, name, captions, numbers)
            if why:
                shown = ", ".join(map(str, lost))
                raise StageError(f"no gradient reaches vector {shown} of {name!r} in {key}: {why}")


def _reason(training: Training, key: str, name: str, captions: Sequence[str], numbers: Sequence[int]) -> str:
    """Why no gradient can reach an embedding; empty if it may with other captions or images."""
    if not fits(training, key, name, captions):
        everywhere = (caption for one in training.dataset.examples for caption in one.captions)
        return "" if fits(training, key, name, everywhere) else TRUNCATED
    if training.objective.options.unmasked_weight > 0 or not _masked_out(training, name, numbers):
        return UNUSED
    latents = training.dataset.latents
    return "" if any(_counts_somewhere(one, latents) for one in _examples_with(training, name)) else MASKED


def _masked_out(training: Training, name: str, numbers: Sequence[int]) -> bool:
    """Whether the masks of all images of these micro-batches with the embedding are black."""
    replacer = training.injection.replacer
    for batch in map(training.dataset.at, numbers):
        for index, caption in enumerate(batch.captions):
            if name in replacer.embeddings_in(caption) and (batch.mask is None or bool(batch.mask[index].any())):
                return False
    return True


def _examples_with(training: Training, name: str) -> Iterator[Example]:
    replacer = training.injection.replacer
    return (one for one in training.dataset.examples if any(name in replacer.embeddings_in(c) for c in one.captions))


def _counts_somewhere(example: Example, latents: Latents) -> bool:
    """Whether a crop of an image has something that its mask includes."""
    for number in range(latents.variants):
        variant = latents.choose_variant(example, False, number / latents.variants, number)
        mask = latents.get(example, variant).mask
        if mask is None or bool(mask.any()):
            return True
    return False


def fits(training: Training, key: str, name: str, captions: Iterable[str]) -> bool:
    """Whether one of the captions has all vectors of the embedding within the token limit of an encoder."""
    encoder = next(one for one in training.model.encoders if one.key == key)
    about = next(one for one in training.model.family.encoders if one.key == key)
    chunks = chunks_of(encoder.tokenizer)
    limit = chunks * token_limit(encoder.tokenizer, about)
    sizes = {embedding: len(span) for embedding, span in training.injection.rows[key].spans.items()}
    texts, replacer = TokenizedTexts(encoder.tokenizer), training.injection.replacer
    return any(
        name not in count_tokens(caption, replacer, sizes, texts, limit, chunks)[1]
        for caption in captions
        if name in replacer.embeddings_in(caption)
    )
