"""Stage `train`: embeddings, LoRAs and weights of the model, in any combination; the rest stands still."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from ...converters.embedding import Contents
from ..export.finished import Finished
from ..recipe.options import RescaleOptions, TrainOptions
from ..run.context import Run
from ..run.steps import load_into_model, read_from_model, run_steps
from ..run.training import build_dataset, build_objective, build_trainables, build_training
from ..train.compute import compiled, less_memory
from ..train.guard import Guard
from .export import write_exports
from .rescale import rescale


def train(run: Run, contents: Contents, options: TrainOptions) -> Contents:
    """Train for `steps` optimizer steps (changes the injected rows, and what `lora` and `finetune` name).

    Returns the trained vectors and, in `rest`, the LoRA; tuned parts are noted in `run.finetuned`. Raises StageError
    when a value stops being finite (the last good vectors are then in `last-good/` of the run's folder) or an
    embedding's vector gets no gradient.
    """
    load_into_model(run, contents)
    guard, finished = Guard(options.guard, run.warn), Finished(run, contents, partial(_as_exported, run))
    trainables = build_trainables(run, options, finished)
    objective = build_objective(run, options)
    if run.resume is not None and run.stage < run.resume.stage:
        for trainable in trainables:  # the checkpoint of a later stage has the values of what was put together here
            trainable.finish()
        return read_from_model(run, contents)
    training = build_training(run, trainables, objective, build_dataset(run, options), guard, options)
    with compiled(run.model.denoiser, options.compile), less_memory(run.model, options.gradient_checkpointing):
        run_steps(run, training, contents, finished, options, write=write_exports)
    return run.kept or contents


def _as_exported(run: Run, contents: Contents) -> Contents:
    """Embeddings as the later stages of the recipe will have made them when they are exported."""
    for _, options in run.recipe.stages_with(RescaleOptions, run.stage + 1):
        contents = rescale(replace(run, notes=[]), contents, options)
    return contents
