"""What a stage takes of an earlier run's checkpoint that does not fit wholly, and what is said of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from ..train.snapshot import Shadow, own_averages, stored_averages, stored_rows, stored_weights
from ..train.training import Training
from ..train.weights import WeightTrainer
from ..train.word_trainer import WordTrainer
from ..words.rows import WordRows
from .checkpoint import Checkpoint
from .state import Run

TAKEN = ("taken: ", "not taken: ")  # how the lines begin that say what a stage took
_WITH, _WITHOUT = ", with its average", ", without its average: this stage keeps none (ema)"
_BEGUN, _BEHIND = "; its average begins anew", ", without the average that its optimizer kept"
_STILL = ", as its average, for it is held still"


def take_what_fits(run: Run, training: Training) -> None:
    """Fill words and weights of the stage's trained things from the source, each once; say what was and was not taken.

    Vectors fit by the word's name and number, weights by name and shape. Training goes on from the values that were
    trained; their averages go along where the stage keeps averages too. A word that no stage trains any more gets its
    average itself, which is what its own run would have exported.
    """
    source = run.source
    if source is None or source.whole:
        return
    for line in [*_take_words(run, training, source.point), *_take_weights(run, training, source.point)]:
        run.progress(line)
        run.notes.append(line)


def _take_words(run: Run, training: Training, point: Checkpoint) -> Iterator[str]:
    if "words" in run.taken:
        return
    run.taken.add("words")
    spans: Mapping[str, Mapping[str, list[int]]] = point.facts["spans"]
    stored, averages = stored_rows(point.tensors), stored_averages(point.tensors, WordTrainer.name)
    behind = own_averages(point.tensors, WordTrainer.name)
    moving = run.recipe.trained if _trains_words(run) else {}
    for key, rows in training.injection.rows.items():
        there, values = spans.get(key, {}), stored.get(key)
        for word, span in rows.spans.items():
            first, last = there.get(word, (0, 0))
            if values is None or word not in there:
                yield f"{TAKEN[1]}{word!r} in {key}: the checkpoint has no such word"
            elif last - first != len(span):
                yield f"{TAKEN[1]}{word!r} in {key}: {last - first} vectors there, {len(span)} here"
            else:
                average = {name: one[first:last] for name, one in averages.get(key, {}).items()}
                how = _take_word(training, key, rows, span, values[first:last], average, moves=word in moving)
                yield f"{TAKEN[0]}{word!r} in {key}{_BEHIND if not average and f'{key}.{word}' in behind else how}"


def _trains_words(run: Run) -> bool:
    """Whether this stage or a later one trains words."""
    return any(stage.kind == "train" and stage.options["embeddings"] for stage in run.recipe.stages[run.stage :])


def _take_word(
    training: Training, key: str, rows: WordRows, span: range, values: Tensor, average: Shadow, *, moves: bool
) -> str:
    """Put a word's values and its average in their places; what became of the average, in words."""
    index = torch.tensor(span, dtype=torch.long, device=rows.values.device)
    rows.values[index] = (average["shadow"] if average and not moves else values).to(rows.values)
    states = None if training.words is None else training.words.states
    if states is not None:
        states.take(key, index, average if moves else {})
    if not average:
        return _BEGUN if states is not None and states.averages and moves else ""
    if not moves:
        return _STILL
    return _WITH if states is not None and states.averages else _WITHOUT


def _take_weights(run: Run, training: Training, point: Checkpoint) -> Iterator[str]:
    for thing in training.things:
        if not isinstance(thing, WeightTrainer) or thing.name in run.taken:
            continue
        run.taken.add(thing.name)
        there, averages = stored_weights(point.tensors, thing.name), stored_averages(point.tensors, thing.name)
        fitting = [key for key, weight in thing.parameters.items() if key in there and there[key].shape == weight.shape]
        thing.take({key: there[key] for key in fitting}, {key: averages[key] for key in fitting if key in averages})
        if fitting:
            how = _of_weights(thing, fitting, averages, behind=bool(own_averages(point.tensors, thing.name)))
            yield f"{TAKEN[0]}{len(fitting)} of {len(thing.parameters)} weights of {thing.name}{how}"
        else:
            why = _why_none(thing.parameters, there)
            yield f"{TAKEN[1]}none of the {len(thing.parameters)} weights of {thing.name}: {why}"


def _why_none(here: Mapping[str, Tensor], there: Mapping[str, Tensor]) -> str:
    """Why no weight fits; a LoRA's first matrices have its rank as their height."""
    if not there:
        return "the checkpoint has none of it"
    key = next((key for key in here if key in there), None)
    if key is None:
        return "the checkpoint has those of other layers"
    old, new = tuple(there[key].shape), tuple(here[key].shape)
    ranks = next(((there[key].shape[0], here[key].shape[0]) for key in here if "lora_A" in key and key in there), None)
    if ranks is not None and ranks[0] != ranks[1]:
        return f"their shapes differ (rank {ranks[0]}, now {ranks[1]})"
    return f"their shapes differ ({key}: {old}, now {new})"


def _of_weights(thing: WeightTrainer, fitting: Sequence[str], averages: Mapping[str, Shadow], *, behind: bool) -> str:
    """What became of the averages of weights that were taken, in words."""
    if any(key in averages for key in fitting):
        return _WITH if thing.averages else _WITHOUT
    if behind:
        return _BEHIND
    return _BEGUN if thing.averages else ""
