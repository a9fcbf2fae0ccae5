"""The stages of a run in the order written, from the beginning or from a checkpoint on."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ...converters.embedding import Contents
from ...converters.errors import ConvertError
from ...converters.tensor import RawTensor
from ..errors import StageError
from ..export.artefacts import require_artefacts
from ..export.last_good import keep_last_good
from ..files import write_json
from ..recipe.model import Stage
from ..records import json_safe
from ..stages import STAGES
from .context import Run
from .manifest import embedding_facts, images_of_embeddings
from .outcome import LESS, as_stage_error
from .proofs import Before, model_proofs, remember_model, require_proofs
from .resume import steps_left
from .samples import draw_after, draw_before, kept_before
from .signals import Stopped


def execute(run: Run, manifest: dict[str, Any]) -> None:
    """Everything between the loaded model and the finished manifest."""
    recipe, model = run.recipe, run.model
    run.checkpointer.asked.steps = steps_left(run, 0)
    before = remember_model(model)
    with run.processes.together():
        shown = images_of_embeddings(recipe)  # now: whoever moves an image while the training goes on spoils no run
    manifest["images"] = run.processes.from_main(lambda: _before(run, manifest["images"]))
    contents = Contents()
    try:
        for number in range(len(recipe.stages)):
            if run.processes.main:
                write_json(run.folder / "manifest.json", json_safe(manifest))  # for those who follow the run
            contents = _run_stage(run, number, contents, manifest)
    except BaseException as error:  # whatever it was: a full disk, Ctrl-C, a stage that found its match
        if run.kept is not None and run.processes.main:
            asked = isinstance(error, (Stopped, KeyboardInterrupt))  # its checkpoint has the model, and one waits
            keep_last_good(run, run.kept, model=not asked)
        raise
    finally:
        run.eject()
        manifest |= {"warnings": run.warnings, "artefacts": run.artefacts}
    run.processes.from_main(lambda: _end(run, contents, shown, manifest, before))


def _before(run: Run, drawn: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Images of the untouched model; those that an earlier process of this run has `drawn` are kept."""
    folder = run.folder / "images"
    kept = kept_before(run.recipe, folder, drawn)
    if kept is not None:
        return kept
    run.progress("drawing images before")
    return draw_before(run.model, run.recipe, folder)


def _end(
    run: Run, contents: Contents, shown: Mapping[str, list[str]], manifest: dict[str, Any], before: Before
) -> None:
    """What the manifest says of the finished run, once its proofs hold, and images of what came out.

    `shown` has the images of each embedding.
    """
    recipe, model = run.recipe, run.model
    if contents.embeddings:
        manifest["embeddings"] = embedding_facts(run, contents, shown)
    manifest["proofs"] = _proofs(run, model_proofs(model, before))
    require_proofs(manifest["proofs"])
    if "finished" in run.data:
        manifest["finished"] = run.data["finished"]
    if run.data.get("standalone"):
        run.progress("drawing images after, from the exported files")
        manifest["images"] += draw_after(
            model, recipe, run.data["standalone"], run.data.get("lora"), run.folder / "images"
        )
    require_artefacts(run.folder, run.artefacts)


def _proofs(run: Run, model: dict[str, Any]) -> dict[str, Any]:
    return {
        **model,
        "gradient_reached": {embedding: embedding in run.reached for embedding in run.recipe.trained},
        **{name: run.data[name] for name in ("exports_verified", "exports_declared", "embeddings") if name in run.data},
    }


def _run_stage(run: Run, number: int, contents: Contents, manifest: dict[str, Any]) -> Contents:
    """Run one stage and note it in the manifest. A failure says which stage it was."""
    stage = run.recipe.stages[number]
    done = run.resume is not None and number < run.resume.stage
    if done and not stage.options.REPEATED:
        run.rows.append(run.done_rows[number])
        return contents
    run.stage, run.notes = number, []
    run.checkpointer.asked.steps = steps_left(run, number)
    begin = time.monotonic()
    run.progress(f"stage {number + 1} of {len(run.recipe.stages)}: {stage.kind}{' (done before)' if done else ''}")
    row = {"kind": stage.kind, "seconds": 0.0, "takes": describe_contents(contents), "gives": [], "notes": run.notes}
    run.rows.append(row)
    try:
        with as_stage_error(LESS if stage.kind == "train" else ""):
            after = _after(run, stage, contents)
        run.kept = after if run.kept is not None else None
        row["gives"] = describe_contents(after)
        return after
    except StageError as error:
        raise type(error)(f"stage {number + 1} ({stage.kind}): {error}") from error
    except ConvertError as error:
        raise StageError(f"stage {number + 1} ({stage.kind}): {error}") from error
    finally:
        row["seconds"] = round(time.monotonic() - begin, 3)
        if done:
            run.rows[-1] = run.done_rows[number]


def _after(run: Run, stage: Stage, contents: Contents) -> Contents:
    """What a stage makes of the contents. What writes files is done by the main process, for all."""

    def work() -> Contents:
        return STAGES[stage.kind](run, contents, stage.options)

    if not stage.options.MAIN_PROCESS or run.processes.count == 1:
        return work()
    if not run.processes.main:
        run.eject()
    return run.processes.from_main(lambda: _whole(work()))


def _whole(contents: Contents) -> Contents:
    """The contents with values of their own, which can be sent to another process."""
    rest = {name: _copy(raw) for name, raw in contents.rest.items()}
    embeddings = [
        replace(embedding, vectors={key: _copy(raw) for key, raw in embedding.vectors.items()})
        for embedding in contents.embeddings
    ]
    return replace(contents, embeddings=tuple(embeddings), rest=rest)


def _copy(raw: RawTensor) -> RawTensor:
    return RawTensor(raw.dtype, raw.shape, bytes(raw.data))


def describe_contents(contents: Contents) -> list[str]:
    """What the contents hold, a line each, for the manifest."""
    embeddings = [f"{embedding.name} ({', '.join(f'{key} {raw.shape[0]}x{raw.shape[1]}' for key, raw in embedding.vectors.items())})"
             for embedding in contents.embeddings]  # fmt: skip
    return embeddings + ([f"LoRA of {len(contents.rest)} tensors"] if contents.rest else [])
