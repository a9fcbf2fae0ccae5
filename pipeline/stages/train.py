"""Stage `train`: words alone, a LoRA around words that stand still, or both together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from tqdm import tqdm

from ...converters.embedding import Contents, Embedding
from ..errors import StageError
from ..models.denoisers import DENOISERS
from ..recipe.captions import read_captions
from ..run.state import Run
from ..train.batches import Batches, Example
from ..train.latents import Latents, encode_pictures
from ..train.loop import LoraTrainer, Training, train_steps
from ..train.lora import add_lora, lora_tensors
from ..train.objective import Objective
from ..train.schedule import rate_factor
from ..train.word_trainer import WordTrainer
from ..words.raw import from_raw, to_raw

ADAMW = {"kind": "adamw", "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0}


def train(
    run: Run,
    contents: Contents,
    *,
    steps: int,
    batch_size: int = 1,
    embeddings: bool = True,
    learning_rate: float | Mapping[str, float] = 5e-3,
    lora: Mapping[str, Any] | None = None,
    optimizer: Mapping[str, Any] = ADAMW,
    schedule: str = "constant",
    warmup_steps: int = 0,
    clip_norm: float = 1.0,
    gradient_accumulation: int = 1,
    gradient_checkpointing: bool = False,
    preserve_norm: Any = None,
    resolution: int | None = None,
    flip: bool = False,
    caption_dropout: float = 0.0,
    log_every: int = 1,
) -> Contents:
    """Train for `steps` optimizer steps (changes the injected rows and, with `lora`, the denoiser).

    Returns the trained vectors and, in `rest`, the LoRA. Raises StageError when a value stops being finite (the last
    good vectors are then in `last-good/` of the run's folder) or a word's vector gets no gradient.
    """
    injection = run.need_injection()
    for word in contents.embeddings:  # what an earlier stage changed (rescale) goes back into the model
        for key, rows in injection.rows.items():
            rows.of(word.name).copy_(from_raw(word.vectors[key]))
    trainer = None
    if embeddings and any(word.train for word in run.recipe.words):
        trainer = WordTrainer(
            injection, run.recipe.words, run.statistics, learning_rate=learning_rate, optimizer=optimizer,
            clip_norm=clip_norm, preserve_norm=preserve_norm,
        )  # fmt: skip
    adapter = _lora_trainer(run, lora, optimizer, clip_norm) if lora is not None else None
    if trainer is None and adapter is None:
        raise StageError("nothing to train: embeddings = false (or no word has train = true) and there is no lora")
    if gradient_checkpointing:
        run.model.denoiser.enable_gradient_checkpointing()
    seed = run.recipe.seed + 1000 * run.stage
    examples = _examples(run)
    training = Training(
        model=run.model,
        denoiser=DENOISERS[run.model.family.denoiser_kind],
        injection=injection,
        objective=Objective(run.model.pipe.scheduler),
        latents=_latents(run, examples, resolution, flip),
        batches=Batches(examples, batch_size, seed, flip=flip, caption_dropout=caption_dropout),
        words=trainer,
        lora=adapter,
        steps=steps,
        accumulation=gradient_accumulation,
        seed=seed,
        factor=lambda step: rate_factor(schedule, step, steps, warmup_steps),
    )
    try:
        _follow(run, training, log_every)
    except StageError:
        _keep_last_good(run, contents)
        raise
    finally:
        if gradient_checkpointing:
            run.model.denoiser.disable_gradient_checkpointing()
    return _trained(run, contents, trainer, adapter)


def _lora_trainer(run: Run, options: Mapping[str, Any], optimizer: Mapping[str, Any], clip_norm: float) -> LoraTrainer:
    parameters = add_lora(run.model.denoiser, options, run.recipe.seed)
    adamw = torch.optim.AdamW(
        parameters, lr=options["learning_rate"], betas=tuple(optimizer["betas"]), eps=optimizer["eps"],
        weight_decay=options["weight_decay"],
    )  # fmt: skip
    return LoraTrainer(parameters, adamw, options["learning_rate"], clip_norm)


def _examples(run: Run) -> list[Example]:
    """Every picture of every concept with its captions, repeated as its concept says, in a fixed order."""
    examples = []
    for concept in run.recipe.concepts:
        examples += [Example(path, tuple(captions)) for path, captions in read_captions(concept)] * concept.repeats
    return examples


def _latents(run: Run, examples: list[Example], resolution: int | None, flip: bool) -> tuple[Latents, Latents | None]:
    """Each distinct picture encoded once; repeats share their latents."""
    model = run.model
    size = resolution or model.denoiser.config.sample_size * model.pipe.vae_scale_factor
    paths = [example.picture for example in examples]
    distinct = list(dict.fromkeys(paths))
    run.progress(f"encoding {len(distinct)} pictures at {size}x{size}")
    place = {path: number for number, path in enumerate(distinct)}
    order = torch.tensor([place[path] for path in paths])

    def encoded(mirrored: bool) -> Latents:
        once = encode_pictures(model.pipe.vae, distinct, size, flip=mirrored)
        return replace(once, mean=once.mean[order], deviation=once.deviation[order])

    return encoded(False), encoded(True) if flip else None


def _follow(run: Run, training: Training, log_every: int) -> None:
    """Run the steps with a progress bar (rate and time left) and write their metrics."""
    with tqdm(total=training.steps, desc="train", unit="step", disable=not run.bar, dynamic_ncols=True) as bar:
        for row in train_steps(training):
            number, active = row["step"], row.pop("active")
            if number % log_every == 0 or number == training.steps:
                row["words"] = {name: _gauge(run, name) for name in active} if training.words else {}
            run.metrics.write({"stage": run.stage, **row})
            bar.set_postfix(loss=f"{row['loss']:.4f}", refresh=False)
            bar.update()


def _gauge(run: Run, name: str) -> dict[str, Any]:
    """Norm of each vector and its way from the start of the run, per encoder."""
    start = next(word for word in run.start.embeddings if word.name == name)
    gauge = {}
    for key, rows in run.need_injection().rows.items():
        now = rows.of(name)
        way = (now - from_raw(start.vectors[key]).to(now.device)).norm(dim=1)
        gauge[key] = {"norm": now.norm(dim=1).tolist(), "moved": way.tolist()}
    return gauge


def _vectors(run: Run, word: Embedding) -> Embedding:
    rows = run.need_injection().rows
    return replace(word, vectors={key: to_raw(rows[key].of(word.name)) for key in word.vectors})


def _trained(run: Run, contents: Contents, trainer: WordTrainer | None, adapter: LoraTrainer | None) -> Contents:
    """The contents as the stage leaves them, and what it has to tell the manifest."""
    if trainer is not None:
        run.stopped_at.update(trainer.stopped_at)
        run.reached |= trainer.reached
        for name in trainer.words.keys() - trainer.reached:
            raise StageError(f"{name!r} was in no batch of this stage: train for more steps, or balance the concepts")
    rest = contents.rest
    if adapter is not None:
        prefix = run.model.family.lora_prefixes[run.model.family.denoiser_module]
        rest = {name: to_raw(tensor) for name, tensor in lora_tensors(run.model.denoiser, prefix).items()}
    return replace(contents, embeddings=tuple(_vectors(run, word) for word in contents.embeddings), rest=rest)


def _keep_last_good(run: Run, contents: Contents) -> None:
    """Write the vectors as the last good step left them: standalone files, one a word."""
    from ..export.standalone import write_standalone

    written = [write_standalone(run, _vectors(run, word), run.folder / "last-good") for word in contents.embeddings]
    run.progress(f"the last good vectors are in {written[0].path.parent}" if written else "no vectors to keep")
