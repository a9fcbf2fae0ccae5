"""Runs the stages of a recipe in order, from the first or from a checkpoint."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from ...converters.embedding import Contents
from ...converters.errors import ConvertError
from ...converters.tensor import RawTensor
from ..errors import StageError
from ..export.artefacts import require_artefacts
from ..export.write import keep_last_good
from ..files import tensor_hash, write_json
from ..models.load import Model
from ..recipe.options import StageOptions
from ..records import json_safe
from ..text import count_of
from .context import RunContext, RunState, StageFunction, export_context
from .drawing import too_slow_before
from .manifest import embedding_facts, images_of_embeddings
from .outcome import LESS_MEMORY, as_stage_error
from .resume import has_steps_left
from .samples import draw_after, draw_before, kept_before
from .signals import Stopped


def execute(
    context: RunContext, state: RunState, stages: Mapping[str, StageFunction], manifest: dict[str, Any]
) -> None:
    """Run every stage, draw the sample images and fill in the manifest; `stages` has the functions by stage kind."""
    context.checkpointer.request.steps_left = has_steps_left(context, state, 0)
    before = remember_model(context.model)
    with context.processes.together():
        images = images_of_embeddings(context.recipe)  # now: moving an image during training must not fail the run
    manifest["images"] = context.processes.from_main(lambda: _draw_before(context, manifest["images"]))
    contents = Contents()
    try:
        for index, stage in enumerate(context.recipe.stages):
            if context.processes.main:
                write_json(context.folder / "manifest.json", json_safe(manifest))  # for those who follow the run
            resumed = state.checkpoint is not None and index < state.checkpoint.stage
            if resumed and not stage.options.REPEATED:
                state.rows.append(state.stored_row(index))
                continue
            with _stage_row(context, state, index, contents, resumed=resumed) as row:
                if stage.options.MAIN_PROCESS and context.processes.count > 1:
                    contents = _in_main_process(context, state, stages[stage.kind], contents, stage.options)
                else:
                    contents = stages[stage.kind](context, state, contents, stage.options)
                row["outputs"] = describe_contents(contents)
            state.latest = contents if state.latest is not None else None
    except BaseException as error:  # of any kind: a full disk, Ctrl-C, a stage that failed
        if state.latest is not None and context.processes.main:
            _save_latest(context, state, state.latest, error)
        raise
    finally:
        state.eject(context.model)
        manifest |= {"warnings": state.warnings, "artefacts": state.artefacts}
    context.processes.from_main(lambda: _finish_manifest(context, state, contents, images, manifest, before))


def _draw_before(context: RunContext, drawn: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Sample images of the base model; those that an earlier process of this run has `drawn` are kept."""
    folder, wanted = context.folder / "images", context.recipe.samples.before
    slow = wanted == "auto" and too_slow_before(context.model, context.recipe)
    if slow or wanted == "never":
        if slow:
            context.progress(
                "no sample images before training: they would take more than a tenth of its time "
                "(samples.before = 'always' draws them)"
            )
        return []
    kept = kept_before(context.recipe, folder, drawn)
    if kept is not None:
        return kept
    context.progress("drawing sample images before training")
    return draw_before(context.model, context.recipe, folder)


@contextmanager
def _stage_row(
    context: RunContext, state: RunState, index: int, contents: Contents, *, resumed: bool
) -> Iterator[dict[str, Any]]:
    """The manifest's entry of the stage that runs in this block; an error names the stage.

    Of a stage that was done before (`resumed`) the entry is the checkpoint's.
    """
    stage, count = context.recipe.stages[index], len(context.recipe.stages)
    state.stage, state.notes = index, []
    context.checkpointer.request.steps_left = has_steps_left(context, state, index)
    begin = time.monotonic()
    context.progress(f"stage {index + 1} of {count}: {stage.kind}{' (done before)' if resumed else ''}")
    inputs = describe_contents(contents)
    row = {"kind": stage.kind, "seconds": 0.0, "inputs": inputs, "outputs": [], "notes": state.notes}
    state.rows.append(row)
    try:
        with as_stage_error(LESS_MEMORY if stage.kind == "train" else ""):
            yield row
    except Stopped:
        raise
    except StageError as error:
        raise type(error)(f"stage {index + 1} ({stage.kind}): {error}") from error
    except ConvertError as error:
        raise StageError(f"stage {index + 1} ({stage.kind}): {error}") from error
    finally:
        row["seconds"] = round(time.monotonic() - begin, 3)
        if resumed:
            state.rows[-1] = state.stored_row(index)


def _in_main_process(
    context: RunContext, state: RunState, stage: StageFunction, contents: Contents, options: StageOptions
) -> Contents:
    """Run a stage that writes files in the main process; all processes get its contents."""
    if not context.processes.main:
        state.eject(context.model)
    return context.processes.from_main(lambda: _in_memory(stage(context, state, contents, options)))


def _in_memory(contents: Contents) -> Contents:
    """The contents with values of their own, which can be sent to another process."""

    def copy(raw: RawTensor) -> RawTensor:
        return RawTensor(raw.dtype, raw.shape, bytes(raw.data))

    embeddings = tuple(
        replace(embedding, vectors={key: copy(raw) for key, raw in embedding.vectors.items()})
        for embedding in contents.embeddings
    )
    return replace(contents, embeddings=embeddings, rest={name: copy(raw) for name, raw in contents.rest.items()})


def _save_latest(context: RunContext, state: RunState, latest: Contents, error: BaseException) -> None:
    """Write what training has reached to `last-good/`; a fine-tuned model only where no checkpoint holds it."""
    model = bool(state.trained.finetuned) and not isinstance(error, (Stopped, KeyboardInterrupt))
    if model:
        state.eject(context.model)
    keep_last_good(export_context(context, state), latest, model=model)


def _finish_manifest(
    context: RunContext, state: RunState, contents: Contents, images: Mapping[str, list[str]],
    manifest: dict[str, Any], before: ModelBefore,
) -> None:  # fmt: skip
    """Fill in the manifest of a run whose stages are done, require its proofs, and draw sample images.

    `images` has the training images of each embedding.
    """
    recipe, exports = context.recipe, state.exports
    if contents.embeddings:
        manifest["embeddings"] = embedding_facts(context, state, contents, images)
    manifest["proofs"] = {
        **model_proofs(context.model, before),
        "gradient_reached": {placeholder: placeholder in state.trained.reached for placeholder in recipe.trained},
    }
    if exports is not None:
        manifest["proofs"] |= {
            "exports_verified": exports.verified,
            "exports_declared": exports.declared,
            "embeddings": exports.embeddings,
        }
    require_proofs(manifest["proofs"])
    if exports is not None and exports.finished is not None:
        manifest["finished"] = exports.finished
    if exports is not None and exports.standalone:
        if recipe.samples.prompts:
            context.progress("drawing sample images after training, from the exported files")
        manifest["images"] += draw_after(
            context.model, recipe, exports.standalone, exports.lora, context.folder / "images"
        )
    require_artefacts(context.folder, state.artefacts)


def describe_contents(contents: Contents) -> list[str]:
    """What the contents hold, a line each, for the manifest."""
    lines = []
    for embedding in contents.embeddings:
        vectors = ", ".join(f"{key} {raw.shape[0]}x{raw.shape[1]}" for key, raw in embedding.vectors.items())
        lines.append(f"{embedding.name} ({vectors})")
    return lines + ([f"LoRA of {count_of(len(contents.rest), 'tensor')}"] if contents.rest else [])


@dataclass(frozen=True, eq=False)
class ModelBefore:
    """The hashes of the vocabularies before a run, and the objects that must be in place again after it."""

    vocabulary: dict[str, str]
    tables: dict[str, Any]
    tokenizers: dict[str, Any]


def remember_model(model: Model) -> ModelBefore:
    """Remember the encoders and tokenizers as they are before anything is injected."""
    return ModelBefore(
        {encoder.key: tensor_hash(encoder.table) for encoder in model.encoders},
        {encoder.key: _table(encoder) for encoder in model.encoders},
        {encoder.key: getattr(model.pipe, encoder.tokenizer_name) for encoder in model.encoders},
    )


def model_proofs(model: Model, before: ModelBefore) -> dict[str, Any]:
    """Whether each vocabulary is bit for bit unchanged, and whether everything that was injected is removed."""
    clean = all(
        _table(encoder) is before.tables[encoder.key]
        and getattr(model.pipe, encoder.tokenizer_name) is before.tokenizers[encoder.key]
        for encoder in model.encoders
    )
    unchanged = {
        encoder.key: tensor_hash(encoder.table) == before.vocabulary[encoder.key] for encoder in model.encoders
    }
    return {"vocabulary_unchanged": unchanged, "ejected_clean": clean}


def require_proofs(proofs: dict[str, Any]) -> None:
    """StageError unless the proofs hold."""
    changed = [key for key, same in proofs["vocabulary_unchanged"].items() if not same]
    if changed:
        raise StageError(f"the vocabulary of {', '.join(changed)} is not bit for bit unchanged")
    if not proofs["ejected_clean"]:
        raise StageError("a text encoder or tokenizer of the model was not restored")


def _table(encoder: Any) -> Any:
    return encoder.module.get_input_embeddings()
