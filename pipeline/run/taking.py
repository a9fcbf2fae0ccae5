"""What a stage loads of an earlier run's checkpoint where only a part of it fits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import torch
from torch import Tensor

from ..train.snapshot import Shadow, stored_averages, stored_rows, stored_weights
from ..train.training import Training
from ..train.weights import WeightTrainer
from ..train.word_trainer import WordTrainer
from ..words.rows import WordRows
from .checkpoint import Checkpoint
from .state import Run

LOADED = "loaded "  # how the line begins that sums up what a stage loaded
_WORDS = "words"
_TITLES = {_WORDS: "embeddings", "lora": "LoRA weights", "finetune": "fine-tuned weights"}


def take_what_fits(run: Run, training: Training) -> None:
    """Load embeddings and weights of the stage from the source, each once, and sum up in one line how many fit.

    Vectors fit by the embedding's name and their number, weights by name and shape. Training starts from the trained
    values; EMA weights are loaded too where the stage keeps some. An embedding that no stage trains any more gets its
    EMA weights themselves, which is what its own run would have exported.
    """
    source = run.source
    if source is None or source.whole:
        return
    fit, total = Counter[str](), Counter[str]()
    for kind, fits in [*_take_words(run, training, source.point), *_take_weights(run, training, source.point)]:
        fit[kind] += fits
        total[kind] += 1
    if total:
        counts = ", ".join(f"{fit[kind]} of {total[kind]} {_TITLES[kind]}" for kind in total)
        line = f"{LOADED}{counts}; new optimizer state"
        run.progress(line)
        run.notes.append(line)


def _take_words(run: Run, training: Training, point: Checkpoint) -> list[tuple[str, bool]]:
    """For each embedding whether it was loaded: its vectors for every text encoder."""
    if _WORDS in run.taken:
        return []
    run.taken.add(_WORDS)
    spans: Mapping[str, Mapping[str, list[int]]] = point.facts["spans"]
    stored, averages = stored_rows(point.tensors), stored_averages(point.tensors, WordTrainer.name)
    trained = run.recipe.trained if _trains_words(run) else {}
    loaded: dict[str, bool] = {}
    for key, rows in training.injection.rows.items():
        there, values = spans.get(key, {}), stored.get(key)
        for word, span in rows.spans.items():
            first, last = there.get(word, (0, 0))
            loaded.setdefault(word, True)
            if values is None or last - first != len(span):
                loaded[word] = False
            else:
                average = {name: one[first:last] for name, one in averages.get(key, {}).items()}
                _take_word(training, key, rows, span, values[first:last], average, trained=word in trained)
    return [(_WORDS, fits) for fits in loaded.values()]


def _trains_words(run: Run) -> bool:
    """Whether this stage or a later one trains words."""
    return any(stage.kind == "train" and stage.options["embeddings"] for stage in run.recipe.stages[run.stage :])


def _take_word(
    training: Training, key: str, rows: WordRows, span: range, values: Tensor, average: Shadow, *, trained: bool
) -> None:
    """Put an embedding's vectors and its EMA weights into the table of one text encoder."""
    index = torch.tensor(span, dtype=torch.long, device=rows.values.device)
    rows.values[index] = (average["shadow"] if average and not trained else values).to(rows.values)
    if training.words is not None:
        training.words.states.take(key, index, average if trained else {})


def _take_weights(run: Run, training: Training, point: Checkpoint) -> list[tuple[str, bool]]:
    """For each weight of the stage's LoRAs and fine-tunes whether it was loaded."""
    loaded: list[tuple[str, bool]] = []
    for thing in training.things:
        if not isinstance(thing, WeightTrainer) or thing.name in run.taken:
            continue
        run.taken.add(thing.name)
        here, averages = thing.parameters, stored_averages(point.tensors, thing.name)
        stored = stored_weights(point.tensors, thing.name)
        same = {key: one for key, one in stored.items() if key in here and here[key].shape == one.shape}
        thing.take(same, {key: averages[key] for key in same if key in averages})
        kind = thing.name.partition(".")[0]
        loaded += [(kind, key in same) for key in here]
    return loaded
