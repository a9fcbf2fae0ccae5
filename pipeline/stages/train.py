"""Stage `train`: words, LoRAs and weights of the model, in any combination; the rest stands still."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from ...converters.embedding import Contents, Embedding
from ..data.dataset import open_dataset
from ..errors import StageError
from ..export.finished import Finished
from ..models.denoisers import DENOISERS
from ..recipe.fill import defaults
from ..run.beside import Options, beside
from ..run.resume import go_on, keep_on
from ..run.state import Run
from ..train.agreement import hold_equal, share_note
from ..train.compiling import compiled
from ..train.guard import Guard
from ..train.locality_setup import locality_of, remember
from ..train.loop import Training, train_steps
from ..train.lora import freeze_lora, has_lora, lora_tensors
from ..train.memory import less_memory
from ..train.objective import Objective, objective_for
from ..train.parts import kohya_prefix, part_modules, pipe_name
from ..train.scaling import loss_scale
from ..train.schedule import rate_factor
from ..train.setup import Common, native_resolution, weight_trainers, weights_of
from ..train.word_trainer import WordSettings, WordTrainer
from ..words.nearest import nearest_tokens
from ..words.raw import to_raw, vectors_for
from .export import write_exports
from .rescale import rescale

OBJECTIVE, NOISE, TIMESTEPS, GUARD = (
    defaults(f"tables/{name}.json") for name in ("objective", "noise", "timesteps", "guard")
)
ADAMW = {"kind": "adamw", "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": None}


def train(
    run: Run,
    contents: Contents,
    *,
    steps: int,
    batch_size: int = 1,
    embeddings: bool = True,
    learning_rate: float | Mapping[str, float] = 5e-3,
    lora: Sequence[Mapping[str, Any]] | None = None,
    finetune: Sequence[Mapping[str, Any]] | None = None,
    optimizer: Mapping[str, Any] = ADAMW,
    schedule: str | Mapping[str, Any] = "constant",
    warmup_steps: float = 0,
    clip_norm: float = 1.0,
    ema: float | None = None,
    gradient_accumulation: int = 1,
    gradient_checkpointing: bool = False,
    preserve_norm: Any = None,
    resolution: int | None = None,
    flip: bool = False,
    caption_dropout: float = 0.0,
    log_every: int = 1,
    objective: Mapping[str, Any] = OBJECTIVE,
    noise: Mapping[str, Any] = NOISE,
    timesteps: Mapping[str, Any] = TIMESTEPS,
    prior_weight: float = 1.0,
    locality: Mapping[str, Any] | None = None,
    watch: Mapping[str, Any] | None = None,
    save: Mapping[str, Any] | None = None,
    guard: Mapping[str, Any] = GUARD,
    compile: bool = False,
) -> Contents:
    """Train for `steps` optimizer steps (changes the injected rows, and what `lora` and `finetune` name).

    Returns the trained vectors and, in `rest`, the LoRA; tuned parts are noted in `run.finetuned`. Raises StageError
    when a value stops being finite (the last good vectors are then in `last-good/` of the run's folder) or a word's
    vector gets no gradient.
    """
    _put_back(run, contents)
    common = Common(steps, clip_norm, ema, run.recipe.seed)
    eye = Guard(guard, partial(_warn, run))
    finished = Finished(run, contents, partial(_as_exported, run))
    things = weight_trainers(run.model, lora or (), finetune or (), common)
    run.finetuned |= {pipe_name(run.model, part) for table in finetune or () for part in table["parts"]}
    if embeddings and any(word.train for word in run.recipe.words):
        factor = partial(rate_factor, schedule, steps=steps, warmup_steps=warmup_steps)
        words = WordSettings(learning_rate, optimizer, factor, clip_norm, preserve_norm, ema)
        start, recorded = _starts(run), run.processes.from_main(lambda: finished.recorded)
        trainer = WordTrainer(run.need_injection(), run.recipe.words, run.statistics, words, start, recorded, eye)
        things.insert(0, trainer)
    if not things:
        raise StageError("nothing to train: no word (embeddings = false, or train = false), no lora, no finetune")
    run.moved |= weights_of(things)
    remember(run, things)
    asked = objective_for(run.model.pipe.scheduler, objective, noise, timesteps)
    _draw_as_trained(run, asked)
    if run.resume is not None and run.stage < run.resume.stage:
        return _as_left(run, contents)  # the checkpoint of a later stage has the values of what was put together here
    seed = run.recipe.seed + 1000 * run.stage
    run.progress("reading and encoding the pictures")
    training = Training(
        model=run.model,
        denoiser=DENOISERS[run.model.family.denoiser_kind],
        injection=run.need_injection(),
        objective=asked,
        dataset=open_dataset(
            run.recipe,
            run.model.pipe.vae,
            resolution=resolution or native_resolution(run.model),
            batch_size=batch_size,
            seed=seed,
            flip=flip,
            caption_dropout=caption_dropout,
            run_folder=run.folder,
            warn=run.warnings.append,
            tell=run.progress,
            bar=run.bar,
            processes=run.processes,
        ),
        things=tuple(things),
        steps=steps,
        accumulation=gradient_accumulation,
        seed=seed,
        scale=loss_scale(run.model.dtype),
        prior_weight=prior_weight,
        guard=eye,
        processes=run.processes,
    )
    if locality is not None:
        training = replace(training, locality=locality_of(run, training, locality))
    with compiled(run.model.denoiser, compile):
        _run_steps(run, training, contents, finished, log_every, gradient_checkpointing, watch, save)
    if training.words is not None:
        run.stopped_at.update(training.words.stopped_at)
        run.reached |= training.words.reached
    return run.kept or contents


def _draw_as_trained(run: Run, asked: Objective) -> None:
    """Where the stage changes what the model is asked for, pictures of this run are drawn accordingly."""
    told = asked.drawing(run.model.pipe.scheduler)
    if told is not run.model.pipe.scheduler:
        run.model.pipe.scheduler = told
        run.warnings.append(
            f"the model's scheduler says otherwise than objective (prediction {asked.kind}); pictures of "
            "this run are drawn as trained, other programs must be told"
        )


def _put_back(run: Run, contents: Contents) -> None:
    """What an earlier stage changed (rescale) goes into the model."""
    for word in contents.embeddings:
        for key, rows in run.need_injection().rows.items():
            rows.of(word.name).copy_(vectors_for(word, key, rows.values.shape[1]))


def _as_exported(run: Run, contents: Contents) -> Contents:
    """Words as the later stages of the recipe will have made them when they are exported."""
    for stage in run.recipe.stages[run.stage + 1 :]:
        if stage.kind == "rescale":
            contents = rescale(replace(run, notes=[]), contents, **stage.options)
    return contents


def _run_steps(
    run: Run, training: Training, contents: Contents, finished: Finished, log_every: int, checkpointing: bool,
    watch: Options, save: Options,
) -> None:  # fmt: skip
    """The steps, with their metrics; whatever ends them, `run.kept` is what the last good one left."""
    with less_memory(run.model, checkpointing):
        try:
            with beside(run, training, watch, save, partial(_as_left, run, contents), write_exports) as after:
                _follow(run, training, log_every, after, finished)
                hold_equal(training)
            if training.guard is not None:
                training.guard.close()
            _all_seen(training.words)
            for thing in training.things:
                thing.finish()
        finally:
            for module in part_modules(run.model).values():
                freeze_lora(module)
            run.kept = _as_left(run, contents)
    if training.scale.overflows:
        run.warnings.append(
            f"{training.scale.overflows} steps overflowed float16 and were repeated with a smaller scale"
        )


def _follow(
    run: Run, training: Training, log_every: int, after: Callable[[dict[str, Any]], None], finished: Finished
) -> None:
    """Run the steps with a progress bar (rate and time left) and write their metrics."""
    starts = training.words.start if training.words is not None else {}
    if run.processes.count > 1:
        run.notes.append(share_note(training))
    first, seconds = go_on(run, training)
    hold_equal(training)
    with tqdm(
        total=training.steps, initial=first, desc="train", unit="step", disable=None if run.bar else True,
        dynamic_ncols=True,
    ) as bar:  # fmt: skip
        for row in train_steps(training, first, seconds):
            number, active = row["step"], row.pop("active")
            if number % log_every == 0 or number == training.steps:
                row["words"] = {name: _gauge(run, starts, name) for name in active} if training.words else {}
            with run.processes.together():
                if run.processes.main:
                    after(row)
                    finished.write(training.words)
                    run.metrics.write({"stage": run.stage + 1, **row})
            bar.set_postfix(loss=f"{row['loss']:.4f}", refresh=False)
            bar.update()
            keep_on(run, training, number, row["seconds"])


def _warn(run: Run, text: str) -> None:
    """Something goes astray: at once on the command line, and in manifest and report."""
    run.warnings.append(text)
    run.progress(f"warning: {text}")


def _all_seen(trainer: WordTrainer | None) -> None:
    missed = sorted(trainer.words.keys() - trainer.reached) if trainer is not None else []
    if missed:
        names = ", ".join(map(repr, missed[:5])) + (f" and {len(missed) - 5} more" if len(missed) > 5 else "")
        raise StageError(f"in no batch of this stage: {names}; train for more steps, or balance the concepts")


def _starts(run: Run) -> dict[str, Tensor]:
    """Encoder key to the rows as the run began, in the order of the injected rows."""
    return {
        key: torch.cat([vectors_for(word, key, rows.values.shape[1]) for word in run.start.embeddings]).to(
            rows.values.device
        )
        for key, rows in run.need_injection().rows.items()
    }


def _gauge(run: Run, starts: Mapping[str, Tensor], name: str) -> dict[str, Any]:
    """Norm of each vector, its way from the start of the run, and the nearest token, per encoder."""
    gauge: dict[str, Any] = {}
    encoders = {encoder.key: encoder for encoder in run.model.encoders}
    for key, rows in run.need_injection().rows.items():
        now, span = rows.of(name), rows.spans[name]
        way = (now - starts[key][span.start : span.stop]).norm(dim=1)
        near = [row[0][0] for row in nearest_tokens(now, encoders[key].table, 1)] if len(now) else []
        names = encoders[key].tokenizer.convert_ids_to_tokens(near)
        gauge[key] = {"norm": now.norm(dim=1).tolist(), "moved": way.tolist(), "nearest": names}
    return gauge


def _vectors(run: Run, word: Embedding) -> Embedding:
    rows = run.need_injection().rows
    return replace(word, vectors={key: to_raw(rows[key].of(word.name)) for key in word.vectors})


def _as_left(run: Run, contents: Contents) -> Contents:
    """The contents with words and LoRA as the model has them now."""
    rest = contents.rest
    for part, module in part_modules(run.model).items():
        if has_lora(module):
            own = lora_tensors(module, kohya_prefix(run.model, part))
            rest = rest | {name: to_raw(tensor) for name, tensor in own.items()}
    return replace(contents, embeddings=tuple(_vectors(run, word) for word in contents.embeddings), rest=rest)
