"""What locality regularisation needs of a run, put together before the first step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.nn import Parameter

from ..data.captions import read_captions
from ..errors import StageError
from ..recipe.model import Recipe
from ..words.placeholders import Replacer
from .locality import Locality
from .trained import Trained
from .untouched import copies
from .weights import WeightTrainer

if TYPE_CHECKING:
    from .training import Training

MIB = 2**20


def remember(recipe: Recipe, originals: dict[Parameter, Tensor], things: Sequence[Trained]) -> list[str]:
    """Where a stage of the recipe has locality: copies of the weights that are fine-tuned, as the model was loaded.

    Called before a stage trains anything, so that `originals` has them for a later stage too. Returns a note of how
    much memory that takes.
    """
    if not any(stage.options.get("locality") for stage in recipe.stages):
        return []
    tuned = [thing for thing in things if isinstance(thing, WeightTrainer) and not thing.name.startswith("lora")]
    new = copies(one for thing in tuned for one in thing.parameters.values() if one not in originals)
    originals.update(new)
    if not new:
        return []
    size = sum(values.numel() * values.element_size() for values in new.values()) / MIB
    return [f"locality keeps {size:,.1f} MiB: the weights that are fine-tuned, as they were"]


def locality_of(
    recipe: Recipe, originals: Mapping[Parameter, Tensor], training: Training, options: Mapping[str, Any]
) -> Locality:
    """The regulariser of a stage. The untouched model is the one with its LoRAs off and the weights that `remember`
    kept. Raises StageError where nothing but words is trained, for then nothing else of the model changes.
    """
    tuned = [thing for thing in training.things if isinstance(thing, WeightTrainer)]
    if not tuned:
        raise StageError(
            "locality: this stage tunes neither a LoRA nor weights of the model, so prompts without words stay as they "
            "are; leave it out"
        )
    mine = [one for thing in tuned for one in thing.parameters.values()]
    before = {parameter: originals[parameter] for parameter in mine if parameter in originals}
    prompts = tuple(options["prompts"] or _plain_captions(recipe))
    rest = {key: options[key] for key in ("weight", "alpha", "every")}
    return Locality(
        training.model, training.denoiser, prompts, **rest, seed=training.seed, before=before,
        encoders=any(thing.moves_text for thing in tuned),
    )  # fmt: skip


def _plain_captions(recipe: Recipe) -> list[str]:
    """Every caption once, with the initial text in the place of each word."""
    texts = {word.placeholder: word.initial_text for word in recipe.words}
    replacer = Replacer(list(texts))
    captions = [text for concept in recipe.concepts for _, several in read_captions(concept) for text in several]
    return list(dict.fromkeys(replacer.replace(caption, texts) for caption in captions))
