"""Embeddings finish one by one: each is exported when it stops, and what happens later takes nothing of it."""

from __future__ import annotations

import json
import os
import random
import signal
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from projects import make_project, run_project
from run.killing import Project, assert_same, child, killed_again_and_again, made_files
from run.kinds import KINDS

from pivotune.converters.embedding import Contents
from pivotune.pipeline.errors import StageError
from pivotune.pipeline.export import program
from pivotune.pipeline.export.finished import Finished, finished_facts
from pivotune.pipeline.recipe.intervals import Every, Stops
from pivotune.pipeline.recipe.load import load_recipe
from pivotune.pipeline.run import execute, steps
from pivotune.pipeline.run import outcome as finishing
from pivotune.pipeline.run.context import RunState
from pivotune.pipeline.train import loop
from pivotune.pipeline.train.embeddings import EmbeddingTrainer

TWO = '[[embedding]]\nplaceholder = "dog"\ninitial_text = "blue"\nstop_after = "3 own steps"\n'
RESCALE = '[[stage]]\nkind = "rescale"\nto = "median"'
EXPORT = 'targets = ["a1111", "diffusers"]'


def two_embeddings(folder: Path, captions: str = "a photo of <cat>", **parts: str) -> Path:
    """A project whose second embedding stands in one of three images."""
    path = make_project(folder, captions=captions, more=TWO + parts.pop("more", ""), export=EXPORT, **parts)
    (folder / "images/0.txt").write_text("a photo of dog", "utf-8")
    return path


@pytest.fixture(autouse=True)
def kept(request, monkeypatch):
    """`finished/` stays after a good run too, so that it can be looked at; but for the tests of its removal."""
    if "removed" not in request.node.name:
        monkeypatch.setattr(finishing, "remove_finished", lambda folder: None)


def lines(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "finished/finished.jsonl").read_text("utf-8").splitlines()]


def finished_files(run: Path) -> dict[str, bytes]:
    found = sorted((run / "finished").rglob("*.safetensors"))
    return {path.relative_to(run / "finished").as_posix(): path.read_bytes() for path in found}


def test_an_embedding_is_exported_after_its_own_steps_as_the_export_stage_writes_it(tmp_path):
    run = run_project(
        load_recipe(two_embeddings(tmp_path, stages=RESCALE), ["train.steps=12"]), tmp_path / "run"
    ).folder
    (line,) = lines(run)
    rows = [json.loads(row) for row in (run / "metrics.jsonl").read_text("utf-8").splitlines()]
    own = [row["step"] for row in rows if "dog" in row["embeddings"]]
    assert len(own) > 3  # it stood in later batches too, and was not trained there
    assert (line["embedding"], line["stage"], line["step"]) == ("dog", 3, own[2])
    found = finished_files(run)
    assert sorted(found) == ["a1111/dog.safetensors", "diffusers/dog.safetensors", "tiny_embeddings/dog.safetensors"]
    for name, content in found.items():
        assert (run / "exports" / name).read_bytes() == content
    embeddings = {
        embedding["placeholder"]: embedding
        for embedding in json.loads((run / "manifest.json").read_text("utf-8"))["embeddings"]
    }
    assert embeddings["dog"]["stopped_at"] == own[2]


def test_a_crash_loses_no_finished_embedding(tmp_path, monkeypatch):
    recipe = load_recipe(two_embeddings(tmp_path, more='[checkpoint]\nevery = "never"'), ["train.steps=12"])
    whole = run_project(recipe, tmp_path / "whole").folder
    step = lines(whole)[0]["step"]
    one_step = loop.one_step

    def killed(training, clock):
        if clock.step == step + 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return one_step(training, clock)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "one_step", killed)
        assert child(lambda: run_project(recipe, tmp_path / "run")) == -signal.SIGKILL
    before = finished_files(tmp_path / "run")
    assert before == finished_files(whole)
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "run/finished").rglob("*")}
    run_project(recipe, tmp_path / "run")  # from the beginning: there is no checkpoint
    assert finished_files(tmp_path / "run") == before
    assert {path: path.stat().st_mtime_ns for path in times} == times  # nothing was written a second time
    assert made_files(tmp_path / "run") == made_files(whole)


def test_kills_at_random_moments_change_no_finished_embedding(tmp_path):
    recipe = load_recipe(two_embeddings(tmp_path, more='[checkpoint]\nevery = "2 steps"'), ["train.steps=8"])
    whole = run_project(recipe, tmp_path / "whole").folder
    made, draw = Project(recipe, whole, 2.0), random.Random(3)
    for number in range(2):
        out = tmp_path / f"run-{number}"
        killed_again_and_again(made, out, draw, most=4)
        assert finished_files(out) == finished_files(whole)
        assert lines(out) == lines(whole)
        assert made_files(out) == made_files(whole)


def test_an_embedding_stopped_by_time_stops_at_the_same_step_after_a_resume(tmp_path, monkeypatch):
    """The ledger says after which step the embedding stopped; the process that resumes is slower and stops there
    too.
    """
    from pivotune.pipeline.recipe.intervals import Clock

    stops = Stops({"a": Every(5.0, "seconds"), "b": Every(1.0, "hours")}, {"a": 7})
    assert stops.due(Clock(6, 100, 1.0, 60.0)) == []
    assert stops.due(Clock(7, 100, 1.0, 60.0)) == ["a"]
    assert stops.due(Clock(8, 100, 1.0, 7200.0)) == ["b"]


class Counted(tuple):
    """Counts how often somebody goes over all of it."""

    times = 0

    def __iter__(self):
        type(self).times += 1
        return super().__iter__()


def test_the_cost_of_exporting_an_embedding_depends_on_no_other(tmp_path, monkeypatch):
    whole, costs = Finished.write, []

    def write(self: Finished, trainer: EmbeddingTrainer) -> None:
        before, lines = Counted.times, len(self.lines)
        whole(self, trainer)
        if len(self.lines) > lines:
            costs.append(Counted.times - before)

    class Watched(Finished):
        def __init__(self, context, contents, last):
            initial = replace(context.initial, embeddings=Counted(context.initial.embeddings))
            super().__init__(replace(context, initial=initial), contents, last)

    monkeypatch.setattr(Finished, "write", write)
    monkeypatch.setattr(import_module("pivotune.pipeline.stages.train"), "Finished", Watched)
    kind = KINDS["many embeddings"]
    recipe = replace(kind, parts={**kind.parts, "stages": RESCALE}).write(tmp_path)
    run_project(replace(recipe, embeddings=Counted(recipe.embeddings)), tmp_path / "run")
    assert len(costs) > 2
    assert costs[0] > 0  # the names of all their files, so that no two are alike
    assert set(costs[1:]) == {0}


def test_idle_steps_give_one_warning_also_when_steps_are_increased(tmp_path, monkeypatch):
    path = make_project(tmp_path, embedding='stop_after = "2 own steps"', more='[checkpoint]\nevery = "1 steps"')
    assert warnings(run_project(load_recipe(path, ["train.steps=2"]), tmp_path / "run").folder) == []
    recipe = load_recipe(path, ["train.steps=5"])
    text = "all embeddings reached stop_after at step 2; steps 3 to 5 have nothing to train"
    one_step = loop.one_step

    def stopping(training, clock):
        if clock.step == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return one_step(training, clock)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "one_step", stopping)
        with pytest.raises(StageError, match="after step 4 of 5"):
            run_project(recipe, tmp_path / "more", source=tmp_path / "run")
    assert warnings(run_project(recipe, tmp_path / "more").folder) == [text]
    (tmp_path / "lora").mkdir()
    tuned = make_project(tmp_path / "lora", embedding='stop_after = "1 own steps"', train="lora = { rank = 2 }")
    assert warnings(run_project(tuned, tmp_path / "tuned").folder) == []  # the LoRA is trained on


@pytest.mark.parametrize("where", ["after the first step", "in the export"])
def test_embeddings_that_miss_stop_after_give_one_warning_also_after_a_kill(tmp_path, monkeypatch, where):
    recipe = load_recipe(two_embeddings(tmp_path, more='[checkpoint]\nevery = "1 steps"'))
    whole = run_project(recipe, tmp_path / "whole").folder
    rows = [json.loads(row) for row in (whole / "metrics.jsonl").read_text("utf-8").splitlines()]
    own = sum("dog" in row["embeddings"] for row in rows)
    assert 0 < own < 3
    text = f"1 of 1 embedding did not reach stop_after: dog has {own} of 3; increase steps"
    assert warnings(whole) == [text]
    one_step = loop.one_step

    def killed(*arguments, **options):
        if where == "in the export" or arguments[1].step == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return one_step(*arguments)

    with monkeypatch.context() as patch:
        stage = import_module("pivotune.pipeline.stages.export")
        patch.setattr(*((stage, "write_exports") if where == "in the export" else (loop, "one_step")), killed)
        assert child(lambda: run_project(recipe, tmp_path / "run")) == -signal.SIGKILL
    run_project(recipe, tmp_path / "run")
    assert_same(tmp_path / "run", whole)
    more = load_recipe(tmp_path / "recipe.toml", ["train.steps=12"])
    assert warnings(run_project(more, tmp_path / "more", source=whole).folder) == []


def test_of_many_embeddings_that_miss_stop_after_a_few_are_named():
    stops = Stops({f"w{number}": Every(4.0, "own steps") for number in range(9)})
    for _ in range(4):
        stops.counted(["w0", "w8"])
    stops.counted(["w2"])
    messages: list[str] = []
    context, trainer = SimpleNamespace(progress=messages.append), SimpleNamespace(stops=stops)
    steps.warn_of_missing_steps(cast(Any, context), RunState(), cast(Any, trainer))
    named = "w1 has 0 of 4, w2 has 1 of 4, w3 has 0 of 4, w4 has 0 of 4, w5 has 0 of 4 and 2 more"
    assert messages == [f"warning: 7 of 9 embeddings did not reach stop_after: {named}; increase steps"]


def warnings(run: Path) -> list[str]:
    found: list[str] = json.loads((run / "manifest.json").read_text("utf-8"))["warnings"]
    return found


def test_an_embedding_that_a_later_stage_trains_is_not_finished(tmp_path):
    more = '[[stage]]\nkind = "train"\nsteps = 2\nbatch_size = 3'
    recipe = load_recipe(two_embeddings(tmp_path, stages=more, train="gradient_accumulation = 2"), ["stage.3.steps=9"])
    run = run_project(recipe, tmp_path / "run").folder
    assert all(line["stage"] == 4 for line in lines(run)) if (run / "finished").exists() else True
    assert not (run / "finished").exists()


def test_embeddings_with_the_same_file_name_get_different_files(tmp_path):
    """A1111 takes fewer characters than a file system: `a(b` and `a)b` are the same file there, but for a number."""
    names = ["a(b", "a)b"]
    more = "".join(
        f'[[embedding]]\nplaceholder = "{name}"\nstop_after = "{n} own steps"\n' for n, name in enumerate(names, 1)
    )
    path = make_project(tmp_path, captions="a photo of <cat> a(b a)b", more=more, export='targets = ["comfyui"]')
    run = run_project(path, tmp_path / "run").folder
    found = finished_files(run)
    assert len(found) == 4
    for name, content in found.items():
        assert (run / "exports" / name).read_bytes() == content
    assert [line["embedding"] for line in lines(run)] == names


@pytest.mark.parametrize("damage", ["half a line", "a file is gone"])
def test_a_damaged_ledger_or_file_is_repaired_by_resuming(tmp_path, damage, monkeypatch):
    recipe = load_recipe(two_embeddings(tmp_path, more='[checkpoint]\nevery = "never"'), ["train.steps=12"])
    whole = run_project(recipe, tmp_path / "whole").folder
    step, one_step = lines(whole)[0]["step"], loop.one_step

    def fails(training, clock):
        if clock.step == step + 1:
            raise OSError("made up")
        return one_step(training, clock)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "one_step", fails)
        with pytest.raises(StageError, match="made up"):
            run_project(recipe, tmp_path / "run")
    ledger = tmp_path / "run/finished/finished.jsonl"
    if damage == "half a line":
        ledger.write_bytes(ledger.read_bytes()[:-9])
    else:
        (tmp_path / "run/finished/a1111/dog.safetensors").unlink()
    run_project(recipe, tmp_path / "run")
    assert finished_files(tmp_path / "run") == finished_files(whole)
    assert lines(tmp_path / "run")[-1] == lines(whole)[-1]


def test_a_missing_embedding_fails_the_run(tmp_path, monkeypatch):
    from pivotune.pipeline.errors import StageError

    stage = import_module("pivotune.pipeline.stages.export")

    whole = run_project(two_embeddings(tmp_path), tmp_path / "whole").folder
    proofs = json.loads((whole / "manifest.json").read_text("utf-8"))["proofs"]
    assert proofs["embeddings"] == {"declared": 2, "exported": 2, "verified": 2}
    write = stage.write_exports

    def loses(context, contents, folder, options):
        made = write(context, contents, folder, options)
        (folder / "tiny_embeddings/dog.safetensors").unlink()
        return made

    monkeypatch.setattr(stage, "write_exports", loses)
    with pytest.raises(StageError, match="verified: 1; missing: 'dog'"):
        run_project(tmp_path / "recipe.toml", tmp_path / "run")
    assert json.loads((tmp_path / "run/manifest.json").read_text("utf-8"))["status"] == "failed"


def test_finished_embeddings_are_removed_once_their_exports_are_verified(tmp_path, monkeypatch):
    recipe = load_recipe(two_embeddings(tmp_path, stages=RESCALE), ["train.steps=12"])
    run = run_project(recipe, tmp_path / "run").folder
    manifest = json.loads((run / "manifest.json").read_text("utf-8"))
    assert (manifest["finished"], manifest["status"]) == ({"embeddings": 1, "removed": True}, "finished")
    assert not [path for path in run.iterdir() if "finished" in path.name]
    stage = import_module("pivotune.pipeline.stages.export")
    with monkeypatch.context() as patch:
        patch.setattr(stage, "write_exports", lambda *a, **k: (_ for _ in ()).throw(OSError("made up")))
        with pytest.raises(StageError, match="made up"):
            run_project(recipe, tmp_path / "failed")
    before = finished_files(tmp_path / "failed")
    assert len(before) == 3  # what was finished is there when the exports are not
    with monkeypatch.context() as patch:
        patch.setattr(finishing, "write_report", lambda folder, **_: os.kill(os.getpid(), signal.SIGKILL))
        assert child(lambda: run_project(recipe, tmp_path / "failed")) == -signal.SIGKILL
    assert finished_files(tmp_path / "failed") == before  # and until the manifest says that all is verified
    assert {name: (tmp_path / "failed/exports" / name).read_bytes() for name in before} == before


def test_finished_embeddings_that_differ_from_the_exports_are_kept(tmp_path, monkeypatch):
    finished = import_module("pivotune.pipeline.export.finished")
    kept, numbers = finished._digest, iter(range(10))
    monkeypatch.setattr(finished, "_digest", lambda embedding: kept(embedding) + str(next(numbers)))
    run = run_project(load_recipe(two_embeddings(tmp_path), ["train.steps=12"]), tmp_path / "run").folder
    manifest = json.loads((run / "manifest.json").read_text("utf-8"))
    assert manifest["finished"] == {"embeddings": 1, "removed": False}
    assert any("finished/ is kept" in text for text in manifest["warnings"])
    assert len(finished_files(run)) == 3


def test_with_packs_a_finished_embedding_has_one_standalone_file(tmp_path, monkeypatch):
    recipe = load_recipe(two_embeddings(tmp_path), ["train.steps=12", "export.files='pack'"])
    assert list(finished_files(run_project(recipe, tmp_path / "run").folder)) == ["tiny_embeddings/dog.safetensors"]


@pytest.mark.parametrize(
    ("how", "where"), [("gone", "a1111/dog.safetensors"), ("changed", "tiny_embeddings/dog.safetensors")]
)
def test_an_export_that_is_damaged_before_the_run_ends_fails_it(tmp_path, monkeypatch, where, how):
    drawn, run = execute.draw_after, tmp_path / "run"

    def harm(*args):
        made, path = drawn(*args), run / "exports" / where
        path.unlink() if how == "gone" else path.write_bytes(path.read_bytes()[:-1] + b"\x7f")
        return made

    monkeypatch.setattr(execute, "draw_after", harm)
    with pytest.raises(StageError, match=f"deleted or changed after they were exported and verified: exports/{where}"):
        run_project(two_embeddings(tmp_path), run)
    assert json.loads((run / "manifest.json").read_text("utf-8"))["status"] == "failed"


def test_a_program_that_gets_too_few_files_fails_the_run(tmp_path, monkeypatch):
    write = program.write_embeddings
    monkeypatch.setattr(
        program, "write_embeddings", lambda embeddings, *rest, **more: write(embeddings[:1], *rest, **more)
    )
    with pytest.raises(StageError, match="2 files for 2 embeddings expected; written: 1"):
        run_project(two_embeddings(tmp_path), tmp_path / "run")


def test_an_unreadable_line_affects_only_its_embedding(tmp_path: Path) -> None:
    line = json.dumps({"embedding": "<cat>", "stage": 3, "step": 2, "sha256": "0", "files": []}).encode()
    (tmp_path / "finished").mkdir()
    harmed = [line, bytes(20), b'{"embedding": "<dog>"}', b"[1]", b"\xff", b""]
    (tmp_path / "finished" / "finished.jsonl").write_bytes(b"\n".join(harmed) + b"\n")
    facts = finished_facts(SimpleNamespace(folder=tmp_path, warnings=[]), Contents(()))
    assert facts == {"embeddings": 1, "removed": False}
