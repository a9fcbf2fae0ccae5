"""A run that began with another's checkpoint does not forget it, however early it is stopped."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from projects import make_project, run_project, run_recipe
from run.killing import assert_same, recorded
from run.unfinished import INPUTS, leave
from safetensors.torch import load_file

from pivotune.pipeline.errors import StageError
from pivotune.pipeline.recipe.load import load_recipe
from pivotune.pipeline.recipe.model import Recipe
from pivotune.pipeline.run import warm_start as takeover
from pivotune.pipeline.run.start import create_run_folder
from pivotune.pipeline.run.steps import EMA_NOTE
from pivotune.pipeline.train import loop

LORA = '[[stage]]\nkind = "train"\nsteps = 2\nembeddings = false\nlora = { rank = 2, learning_rate = 1e-2 }'
DRAWN = "watch = { sample_every = '3 steps', prompts = ['<cat>'], count = 1 }"


def fail_at(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Have the `number`th step of the run fail."""
    one_step, count = loop.one_step, []

    def failing(training, clock):
        count.append(clock.step)
        if len(count) == number:
            raise OSError("made up")
        return one_step(training, clock)

    monkeypatch.setattr(loop, "one_step", failing)


@pytest.fixture
def longer(tmp_path: Path) -> tuple[Recipe, Path, Path]:
    """A recipe of more steps, the run that it may continue from, and one that did so undisturbed."""
    path = make_project(tmp_path, train=DRAWN)
    source = run_project(path, tmp_path / "source").folder
    more = load_recipe(path, ["train.steps=6"])
    return more, source, run_project(more, tmp_path / "whole", source=source).folder


@pytest.mark.parametrize("again", [pytest.param("with the option", marks=pytest.mark.slow), "without it"])
def test_a_run_without_a_checkpoint_of_its_own_keeps_its_source(tmp_path, monkeypatch, longer, again):
    recipe, source, whole = longer
    for stop in ("while it takes over", "in its first step"):
        with monkeypatch.context() as patch:
            if stop == "in its first step":
                fail_at(patch, 1)
            else:
                patch.setattr(takeover.shutil, "copyfile", lambda *paths: (_ for _ in ()).throw(OSError("made up")))
            with pytest.raises(StageError, match="made up"):
                run_project(recipe, tmp_path / "run", source=source)
    assert not (tmp_path / "run/checkpoints").exists()
    messages: list[str] = []
    given = source if again == "with the option" else None
    run_recipe(recipe, out=tmp_path / "run", progress=messages.append, bar=False, source=given)
    assert f"resuming {tmp_path / 'run'}, after step 3 of stage 3" in messages
    assert_same(tmp_path / "run", whole)


def test_a_missing_or_changed_source_is_named(tmp_path, monkeypatch, longer):
    recipe, source, whole = longer
    with monkeypatch.context() as patch:
        fail_at(patch, 1)
        with pytest.raises(StageError, match="made up"):
            run_project(recipe, tmp_path / "run", source=source)
    moved = shutil.copytree(source, tmp_path / "moved")
    (checkpoint,) = (source / "checkpoints").iterdir()
    (other,) = (tmp_path / "whole/checkpoints").iterdir()
    shutil.copyfile(other, checkpoint)
    with pytest.raises(StageError, match="not the checkpoint that the run started from; choose another --out"):
        run_project(recipe, tmp_path / "run")
    checkpoint.unlink()
    with pytest.raises(StageError, match=r"started from is still needed.*give its new path with --from-checkp"):
        run_project(recipe, tmp_path / "run")
    with pytest.raises(StageError, match="did not start from this checkpoint"):
        run_project(recipe, tmp_path / "run", source=tmp_path / "whole")
    monkeypatch.chdir(moved / "checkpoints")
    run_project(recipe, tmp_path / "run", source=Path(checkpoint.name))
    assert_same(tmp_path / "run", whole)
    source_of = json.loads((tmp_path / "run/manifest.json").read_text("utf-8"))["source"]
    assert source_of["path"] == str(moved / "checkpoints" / checkpoint.name)


@pytest.mark.slow
def test_stages_after_a_stop_still_load_what_fits(tmp_path, monkeypatch):
    path = make_project(tmp_path, stages=LORA, more='[checkpoint]\nevery = "1 steps"')
    source = run_project(path, tmp_path / "source").folder
    recipe = load_recipe(path, ["stage.3.learning_rate=5e-3"])
    whole = run_project(recipe, tmp_path / "whole", source=source).folder
    with monkeypatch.context() as patch:
        fail_at(patch, 3)
        with pytest.raises(StageError, match="made up"):
            run_project(recipe, tmp_path / "run", source=source)
    messages: list[str] = []
    run_recipe(recipe, out=tmp_path / "run", progress=messages.append, bar=False)
    assert_same(tmp_path / "run", whole)
    notes = [note for stage in recorded(whole)["stages"] for note in stage["notes"] if note.startswith("loaded")]
    assert [line for line in messages if line.startswith("loaded")] == notes[
        -1:
    ]  # of the embeddings it is in the checkpoint
    assert json.loads((whole / "manifest.json").read_text("utf-8"))["source"]["continues"] is False


def taken_by(path: Path, out: Path, source: Path, *sets: str) -> tuple[Path, list[str]]:
    """A run of a recipe with other settings that takes what fits, and what it says of that."""
    messages: list[str] = []
    recipe = load_recipe(path, ["train.steps=1", "train.learning_rate=1e-30", *sets])
    run = run_recipe(recipe, out=out, progress=messages.append, bar=False, source=source).folder
    return run, [line for line in messages if line.startswith("loaded")]


STILL = "train.lora.learning_rate=1e-30"


def test_ema_weights_are_loaded_where_the_stage_has_ema(tmp_path):
    path = make_project(tmp_path, train="ema = 0.9\nlora = { rank = 2 }")
    source = run_project(path, tmp_path / "source").folder
    (point,) = (source / "checkpoints").iterdir()
    stored = load_file(point)
    values = stored["trainables/embeddings/rows.clip_l"]
    average = stored["trainables/embeddings/averages.clip_l.shadow"]
    assert not torch.equal(values, average)
    run, messages = taken_by(path, tmp_path / "run", source, STILL)
    assert len(messages) == 1
    assert re.fullmatch(r"loaded 1 of 1 embedding, (\d+) of \1 LoRA weights; new optimizer state", messages[0])
    keep = (1 + 4) / (10 + 4)  # the fourth step of the average, not its first
    expected = average * keep + values * (1 - keep)
    torch.testing.assert_close(exported(run), expected, rtol=1e-6, atol=1e-7)
    without = path.with_name("without.toml")
    without.write_text(path.read_text("utf-8").replace("ema = 0.9", ""), "utf-8")
    alone, _ = taken_by(without, tmp_path / "without", source, STILL)
    assert torch.equal(exported(alone), values)
    assert [EMA_NOTE in str(recorded(one)["stages"]) for one in (source, alone)] == [True, False]


def test_an_embedding_that_is_not_trained_is_loaded_as_its_run_would_have_exported_it(tmp_path):
    """Also where the stage keeps an average of all rows, which changes places with them at the end."""
    path = make_project(tmp_path, train="ema = 0.9\nlora = { rank = 2 }")
    source = run_project(path, tmp_path / "source").folder
    run, _ = taken_by(path, tmp_path / "run", source, STILL, "embedding.train=false")
    assert torch.equal(exported(run), exported(source))


def test_ema_starts_from_the_loaded_weights_where_the_source_has_none(tmp_path):
    more = '[[embedding]]\nplaceholder = "dog"\ninitial_text = "red"'
    path = make_project(tmp_path, captions="a <cat> and a dog", more=more)
    source = run_project(path, tmp_path / "source").folder
    sets = ["train.ema=0.9", "embedding.2.train=false"]
    run, messages = taken_by(path, tmp_path / "run", source, *sets)
    assert messages == ["loaded 2 of 2 embeddings; new optimizer state"]
    torch.testing.assert_close(exported(run), exported(source), rtol=1e-6, atol=0.0)
    assert torch.equal(exported(run, "dog"), exported(source, "dog"))


def exported(run: Path, embedding: str = "cat") -> torch.Tensor:
    return load_file(run / f"exports/tiny_embeddings/{embedding}.safetensors")["emb_params"]


def test_a_run_in_the_default_folder_resumes_only_with_its_own_source(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("pivotune.pipeline.records._schema_error", lambda manifest: "")  # these are not whole
    digests = (("one", "1" * 64), ("other", "2" * 64))
    one, other = ({"path": f"/{name}", "sha256": digest, "continues": True} for name, digest in digests)
    leave(tmp_path / "runs/x", "running", source=one)

    def started(source):
        start = create_run_folder("x", None, INPUTS, fresh=False, source=source)
        return start.folder.name, start.unfinished is not None

    assert started(one) == ("x", True)
    assert started(one | {"path": "/elsewhere/one"}) == ("x", True)
    assert started(None) == ("x", True)
    assert started(other) == ("x-2", False)
