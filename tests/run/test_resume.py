"""A run that was stopped resumes with the same command and ends in the same bytes."""

from __future__ import annotations

import importlib
import itertools
import json
import os
import random
import re
import signal
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from projects import make_project, run_project, run_recipe, stopped_at
from run.killing import assert_same, child, killed_again_and_again, made_files, project
from run.kinds import KINDS
from safetensors.torch import load_file

from pivotune.pipeline import records as metrics
from pivotune.pipeline.errors import StageError
from pivotune.pipeline.recipe.load import load_recipe
from pivotune.pipeline.run import checkpoints as checkpointer
from pivotune.pipeline.run import outcome, resume, runner, steps
from pivotune.pipeline.run import outcome as finishing
from pivotune.pipeline.run.checkpoints import read_checkpoint, write_checkpoint
from pivotune.pipeline.run.context import RunState
from pivotune.pipeline.run.replay import replay
from pivotune.pipeline.run.resume import has_steps_left
from pivotune.pipeline.run.signals import Stopped, catch_signals
from pivotune.pipeline.run.start import Start, report_start
from pivotune.pipeline.stages import STAGES
from pivotune.pipeline.train import loop
from pivotune.pipeline.train.snapshot import stored_rows

KILLS = 25
EVERY = '[checkpoint]\nevery = "2 steps"'


def manifest_of(folder: Path) -> dict:
    return json.loads((folder / "manifest.json").read_text("utf-8"))


def metrics_of(folder: Path) -> list[dict]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text("utf-8").splitlines()]
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


ALWAYS = ("embeddings and LoRA", "fine-tune, Prodigy, average", "pivotal")


@pytest.mark.parametrize(
    "kind", [kind if kind in ALWAYS else pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS]
)
def test_kills_at_random_moments_change_no_byte(tmp_path, kind):
    if KINDS[kind].lacks:
        pytest.skip(KINDS[kind].lacks)
    made = project(tmp_path / "project", kind)
    draw, kills, runs = random.Random(1), 0, 0
    while kills < KILLS / len(ALWAYS):
        out = tmp_path / f"run-{runs}"
        kills += len(killed_again_and_again(made, out, draw, most=6))
        assert_same(out, made.whole)
        runs += 1


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_after_the_current_step_with_a_checkpoint(tmp_path, monkeypatch, how):
    recipe = load_recipe(make_project(tmp_path, more='[checkpoint]\nevery = "never"'))
    whole = run_project(recipe, tmp_path / "whole").folder
    with monkeypatch.context() as patch:
        stopped_at(patch, 2, how)
        text = r"^Stopped by .* after step 2 of 3 \(stage 3\); the same command resumes it"
        with pytest.raises(Stopped, match=text) as caught:
            run_project(recipe, tmp_path / "run", fresh=how == signal.SIGTERM)
    assert ("--fresh" in str(caught.value)) == (how == signal.SIGTERM)
    assert caught.value.exit_code == {signal.SIGINT: 130, signal.SIGTERM: 143}[how]
    left = manifest_of(tmp_path / "run")
    assert left["status"] == "stopped"
    assert [path.name for path in (tmp_path / "run/checkpoints").iterdir()] == ["stage-003-step-000000002.safetensors"]
    messages: list[str] = []
    run_recipe(recipe, out=tmp_path / "run", progress=messages.append, bar=False)
    assert f"resuming {tmp_path / 'run'}, after step 2 of stage 3" in messages
    assert made_files(tmp_path / "run") == made_files(whole)
    after = manifest_of(tmp_path / "run")
    assert (after["status"], after["started"], len(after["resumed"])) == ("finished", left["started"], 1)
    assert after["embeddings"] == manifest_of(whole)["embeddings"]


def test_a_run_with_t5_embeddings_and_lora_resumes(tmp_path, monkeypatch):
    recipe = load_recipe(make_project(tmp_path, "sd3", train="lora = { rank = 1 }", export='targets = ["comfyui"]'))
    whole = run_project(recipe, tmp_path / "whole").folder
    with monkeypatch.context() as patch:
        stopped_at(patch, 2, signal.SIGINT)
        with pytest.raises(Stopped):
            run_project(recipe, tmp_path / "run")
    run_project(recipe, tmp_path / "run")
    assert made_files(tmp_path / "run") == made_files(whole)
    assert metrics_of(tmp_path / "run") == metrics_of(whole)
    assert "t5xxl" in load_file(tmp_path / "run/exports/tiny_embeddings/cat.safetensors")


def test_a_signal_after_the_last_step_says_that_the_run_is_being_finished(tmp_path, monkeypatch):
    recipe, messages, stage = make_project(tmp_path), [], importlib.import_module("pivotune.pipeline.stages.export")
    write, closed = stage.write_exports, steps._close

    def close(*arguments, **options):
        os.kill(os.getpid(), signal.SIGTERM)
        closed(*arguments, **options)

    def exporting(*arguments, **options):
        os.kill(os.getpid(), signal.SIGTERM)
        return write(*arguments, **options)

    answer = "SIGTERM: all steps are done; the run is being finished; once more stops it at once"
    for place, name, asks in ((steps, "_close", close), (stage, "write_exports", exporting)):
        with monkeypatch.context() as patch:
            patch.setattr(place, name, asks)
            run_recipe(load_recipe(recipe), out=tmp_path / name, progress=messages.append, bar=False)
        assert [line for line in messages if "SIGTERM" in line] == [answer]
        assert manifest_of(tmp_path / name)["status"] == "finished"
        messages.clear()


def test_steps_are_left_where_no_checkpoint_has_them():
    trains = [(0, SimpleNamespace(steps=5)), (2, SimpleNamespace(steps=4))]

    def left(index, checkpoint=None):
        recipe = SimpleNamespace(stages_with=lambda kind, first: [one for one in trains if one[0] >= first])
        return has_steps_left(SimpleNamespace(recipe=recipe), RunState(checkpoint), index)

    assert [left(number) for number in range(4)] == [True, True, True, False]
    at = [SimpleNamespace(stage=2, step=step) for step in (3, 4)]
    assert [left(number, at[0]) for number in range(4)] == [True, True, True, False]
    assert [left(number, at[1]) for number in range(4)] == [False] * 4


def test_the_second_signal_stops_at_once_and_the_checkpoint_stays(tmp_path, monkeypatch):
    recipe = load_recipe(make_project(tmp_path, more='[checkpoint]\nevery = "1 steps"'))
    whole = run_project(recipe, tmp_path / "whole").folder
    with monkeypatch.context() as patch:
        one_step = loop.one_step

        def impatient(training, clock):
            if clock.step == 2:
                os.kill(os.getpid(), signal.SIGINT)
                os.kill(os.getpid(), signal.SIGINT)
            return one_step(training, clock)

        patch.setattr(loop, "one_step", impatient)
        with pytest.raises(Stopped, match="Stopped at once"):
            run_project(recipe, tmp_path / "run")
    assert (tmp_path / "run/checkpoints/stage-003-step-000000002.safetensors").is_file()
    run_project(recipe, tmp_path / "run")
    assert made_files(tmp_path / "run") == made_files(whole)


def test_an_interruption_that_a_library_turns_into_an_error_is_recognised(tmp_path, monkeypatch):
    recipe = load_recipe(make_project(tmp_path))

    def reading(*args):
        try:
            os.kill(os.getpid(), signal.SIGINT)
        except KeyboardInterrupt:
            raise OSError("this file cannot be read") from None

    with monkeypatch.context() as patch:
        patch.setattr(runner, "load_model", reading)
        with pytest.raises(KeyboardInterrupt):
            run_project(recipe, tmp_path / "run")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler

    def twice(training, clock):
        os.kill(os.getpid(), signal.SIGINT)
        reading()

    monkeypatch.setattr(loop, "one_step", twice)
    with pytest.raises(Stopped, match="Stopped at once"):
        run_project(recipe, tmp_path / "run")
    assert manifest_of(tmp_path / "run")["status"] == "stopped"


@pytest.mark.parametrize("when", ["stopped", "finished"])
def test_an_interruption_while_the_report_is_written_loses_only_the_report(tmp_path, monkeypatch, when):
    """Drawing its curves, matplotlib makes a ValueError of it."""
    recipe = load_recipe(make_project(tmp_path, more=EVERY))

    def drawing(folder, **_):
        try:
            for _ in range(1 if when == "stopped" else 2):
                os.kill(os.getpid(), signal.SIGINT)
        except KeyboardInterrupt:
            raise ValueError("Invalid affine transformation matrix") from None

    monkeypatch.setattr(outcome, "write_report", drawing)  # of a run that was stopped
    monkeypatch.setattr(finishing, "write_report", drawing)
    if when == "stopped":
        stopped_at(monkeypatch, 2, signal.SIGINT)
    expected = (
        "Stopped by Ctrl-C after step 2"
        if when == "stopped"
        else "everything is trained and exported, only the report is missing"
    )
    with pytest.raises(Stopped, match=expected):
        run_project(recipe, tmp_path / "run")
    assert manifest_of(tmp_path / "run")["status"] == ("stopped" if when == "stopped" else "finishing")


def test_a_signal_while_a_line_is_written_is_handled(capfd):
    def entered_twice(text):
        raise RuntimeError("reentrant call inside <_io.BufferedWriter name='<stderr>'>")

    with catch_signals(entered_twice) as asked:
        os.kill(os.getpid(), signal.SIGTERM)
        assert asked.name == "SIGTERM"
    assert (
        capfd.readouterr().err
        == "SIGTERM: stopping after the current step, with a checkpoint; once more stops it at once\n"
    )


def test_a_changed_image_refuses_the_checkpoint_and_is_named(tmp_path, monkeypatch):
    recipe = load_recipe(make_project(tmp_path, more=EVERY))
    stopped_at(monkeypatch, 2, signal.SIGINT)
    with pytest.raises(Stopped):
        run_project(recipe, tmp_path / "run")
    (tmp_path / "images/1.png").write_bytes((tmp_path / "images/0.png").read_bytes())
    before = sorted(path.name for path in (tmp_path / "run").rglob("*"))
    with pytest.raises(StageError, match=r"data: 1 image changed \(images/1\.png\)"):
        run_project(recipe, tmp_path / "run")
    assert sorted(path.name for path in (tmp_path / "run").rglob("*")) == before


def test_a_damaged_checkpoint_is_skipped_for_the_one_before(tmp_path, monkeypatch):
    recipe = load_recipe(make_project(tmp_path, more='[checkpoint]\nevery = "1 steps"'))
    whole = run_project(recipe, tmp_path / "whole").folder
    with monkeypatch.context() as patch:
        stopped_at(patch, 2, signal.SIGINT)
        with pytest.raises(Stopped):
            run_project(recipe, tmp_path / "run")
    newest = max((tmp_path / "run/checkpoints").iterdir())
    newest.write_bytes(newest.read_bytes()[:-100])
    lines: list[str] = []
    report_start(Start(tmp_path / "run", {}), None, lines.append)  # where the other one is damaged too
    report_start(Start(tmp_path, {}), None, lines.append)
    assert [line.partition(", ")[2] for line in lines] == [
        "from step 1: it has no usable checkpoint", "from step 1: it has no checkpoint"
    ]  # fmt: skip
    messages: list[str] = []
    run_recipe(recipe, out=tmp_path / "run", progress=messages.append, bar=False)
    assert any(str(newest) in line and "skipped" in line for line in messages)
    assert any("after step 1 of stage 3" in line for line in messages)
    assert made_files(tmp_path / "run") == made_files(whole)


def test_a_second_process_in_the_folder_is_refused(tmp_path, monkeypatch):
    recipe = load_recipe(make_project(tmp_path))
    codes = []
    one_step = loop.one_step

    def meanwhile(training, clock):
        if clock.step == 1:
            codes.append(child(lambda: run_project(recipe, tmp_path / "run")))
        return one_step(training, clock)

    monkeypatch.setattr(loop, "one_step", meanwhile)
    run_project(recipe, tmp_path / "run")
    assert codes == [1]
    assert manifest_of(tmp_path / "run")["status"] == "finished"


def test_a_full_disk_while_a_checkpoint_is_written_loses_nothing(tmp_path, monkeypatch):
    recipe = load_recipe(make_project(tmp_path, more='[checkpoint]\nevery = "1 steps"'))
    whole = run_project(recipe, tmp_path / "whole").folder
    from safetensors import torch as module

    save, calls = module.save_file, []

    def full(tensors, path, metadata):
        calls.append(path)
        if len(calls) == 2:
            Path(path).write_bytes(b"half")
            raise OSError(28, "No space left on device")
        save(tensors, path, metadata)

    monkeypatch.setattr(module, "save_file", full)
    with pytest.raises(StageError, match=r"the checkpoint cannot be written .*No space left"):
        run_project(recipe, tmp_path / "run")
    run_project(recipe, tmp_path / "run")
    assert made_files(tmp_path / "run") == made_files(whole)


def test_replay_finds_the_same_and_names_what_differs(tmp_path):
    recipe = load_recipe(make_project(tmp_path, train="lora = { rank = 2, dropout = 0.2 }"))
    first = run_project(recipe, tmp_path / "run").folder
    quiet = {"progress": lambda text: None, "bar": False}
    same = replay(first, STAGES, out=tmp_path / "again", **quiet)
    assert (same.differences, same.inputs, same.steps) == ((), (), 3)
    assert same.files >= 4
    lines = (first / "metrics.jsonl").read_text("utf-8").splitlines()
    row = json.loads(lines[1])
    lines[1] = json.dumps({**row, "loss": row["loss"] + 1e-9})
    (first / "metrics.jsonl").write_text("\n".join(lines) + "\n", "utf-8")
    export = first / "exports" / "tiny.safetensors"
    export.write_bytes(export.read_bytes()[:-1] + b"\x7f")
    (tmp_path / "images/0.txt").write_text("an image of <cat>", "utf-8")
    other = replay(first, STAGES, out=tmp_path / "third", **quiet)
    assert other.differences[0].startswith("metrics, step 1 of stage")
    assert "exports/tiny.safetensors: different bytes" in other.differences
    assert any(line.startswith("data.files.images/0.txt: ") for line in other.inputs)


def test_only_a_finished_run_is_replayed(tmp_path):
    with pytest.raises(StageError, match="contains no run"):
        replay(tmp_path, STAGES, out=None, progress=lambda text: None, bar=False)


DRAWN = 'watch = { sample_every = "3 steps", prompts = ["<cat>"], count = 1 }'


@pytest.mark.parametrize("train", [DRAWN, "lora = { rank = 2, dropout = 0.2 }\nema = 0.9"])
def test_more_steps_continue_from_the_end_of_a_finished_run(tmp_path, train):
    path = make_project(tmp_path, train=train)
    first = run_project(path, tmp_path / "first").folder
    more = load_recipe(path, ["train.steps=6"])
    with pytest.raises(StageError, match=f"add --from-checkpoint {first}"):
        run_project(more, first)
    made = made_files(first)
    whole = run_project(more, tmp_path / "whole").folder
    messages: list[str] = []
    longer = tmp_path / "longer"
    run_recipe(more, out=longer, progress=messages.append, bar=False, source=first)
    assert f"continuing from {first}, after step 3 of stage 3" in messages
    assert made_files(longer) == made_files(whole)
    assert metrics_of(longer) == metrics_of(whole)
    for image in (one for row in metrics_of(longer) for one in row.get("images", ())):
        assert (longer / image["path"]).read_bytes() == (whole / image["path"]).read_bytes()
    assert made_files(first) == made
    (first / "metrics.jsonl").unlink()
    with pytest.raises(StageError, match="its metrics and images cannot be copied"):
        run_project(more, tmp_path / "none", source=first)


def test_what_fits_of_another_recipe_is_loaded_and_counted(tmp_path):
    more = '[[embedding]]\nplaceholder = "dog"\ninitial_text = "red"\ntrain = false'
    path = make_project(tmp_path, train="lora = { rank = 2 }", more=more)
    first = run_project(path, tmp_path / "first").folder
    text = path.read_text("utf-8").replace('"dog"', '"hen"').replace("rank = 2", "rank = 2, targets = 'all'")
    path.write_text(text.replace("steps = 3", "steps = 1").replace("1e-2", "1e-30"), "utf-8")
    messages: list[str] = []
    recipe = load_recipe(path, ["train.lora.learning_rate=1e-30"])
    second = run_recipe(recipe, out=tmp_path / "second", progress=messages.append, bar=False, source=first).folder
    (line,) = (line for line in messages if line.startswith("loaded "))
    found = re.fullmatch(r"loaded 1 of 2 embeddings, (\d+) of (\d+) LoRA weights; new optimizer state", line)
    assert found is not None
    assert 0 < int(found[1]) < int(found[2])
    assert any(
        line.startswith("loading what fits from") and "recipe.embedding.2.placeholder" in line for line in messages
    )
    cats = [(run / "exports/tiny_embeddings/cat.safetensors").read_bytes() for run in (first, second)]
    assert cats[0] == cats[1]


def test_weights_of_a_stage_that_is_done_collect_no_gradient_after_a_resume(tmp_path, monkeypatch):
    embeddings = '[[stage]]\nkind = "train"\nsteps = 2\nlearning_rate = 1e-2'
    tuned = "embeddings = false\nema = 0.9\nfinetune = { parts = ['denoiser'] }"
    recipe = load_recipe(make_project(tmp_path, train=tuned, stages=embeddings), ["stage.3.steps=2"])
    whole = run_project(recipe, tmp_path / "whole").folder
    with monkeypatch.context() as patch:
        stopped_at(patch, 3, signal.SIGINT)
        with pytest.raises(Stopped):
            run_project(recipe, tmp_path / "run")
    one_step, asked = loop.one_step, []

    def looked(training, clock):
        asked.extend(name for name, one in training.model.denoiser.named_parameters() if one.requires_grad)
        return one_step(training, clock)

    monkeypatch.setattr(loop, "one_step", looked)
    run_project(recipe, tmp_path / "run")
    assert asked == []
    assert made_files(tmp_path / "run") == made_files(whole)


def test_a_checkpoint_that_does_not_fit_leaves_the_last_good_files_alone(tmp_path, monkeypatch):
    recipe = load_recipe(make_project(tmp_path))
    with monkeypatch.context() as patch:
        stopped_at(patch, 2, signal.SIGINT)
        with pytest.raises(Stopped):
            run_project(recipe, tmp_path / "run")
    [embedding] = (tmp_path / "run/last-good").rglob("*.safetensors")
    trained_bytes = embedding.read_bytes()

    def unfit(*arguments):
        raise StageError("does not fit")

    monkeypatch.setattr(resume, "restore_snapshot", unfit)
    with pytest.raises(StageError, match="does not fit"):
        run_project(recipe, tmp_path / "run")
    assert embedding.read_bytes() == trained_bytes


def test_what_a_checkpoint_counts_of_the_metrics_is_on_the_disk(tmp_path, monkeypatch):
    written, synced = metrics.Metrics(tmp_path), []
    written.write({"step": 1})
    sync = os.fsync
    monkeypatch.setattr(metrics.os, "fsync", lambda file: synced.append(os.fstat(file).st_ino) or sync(file))
    assert written.settled()["bytes"] == len('{"step": 1}\n')
    assert synced == [(tmp_path / "metrics.jsonl").stat().st_ino]
    written.close()


def test_a_timed_interval_continues_after_a_resume(tmp_path, monkeypatch):
    """Every step takes twenty minutes here: each half hour ends with steps 2, 3, 5 and 6."""
    recipe = load_recipe(
        make_project(tmp_path, more='[checkpoint]\nevery = "30 minutes"'),
        ["train.steps=7", "train.save={ every = '30 minutes', keep = 9 }"],
    )
    ticks, written = itertools.count(step=600), []
    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: next(ticks)))

    def recorded(run, point, keep):
        written.append(point.step)
        return write_checkpoint(run, point, keep)

    monkeypatch.setattr(checkpointer, "write_checkpoint", recorded)
    with monkeypatch.context() as patch:
        stopped_at(patch, 3, signal.SIGINT)
        with pytest.raises(Stopped):
            run_project(recipe, tmp_path / "run")
    run_project(recipe, tmp_path / "run")
    assert written == [2, 3, 5, 6, 7]
    saved = [row["step"] for row in metrics_of(tmp_path / "run") if "saved" in row]
    assert saved == [2, 3, 5, 6]


def test_a_checkpoint_has_the_rows_of_the_embeddings_once_whether_they_are_trained_or_not(tmp_path):
    frozen = '[[stage]]\nkind = "train"\nsteps = 1\nembeddings = false\nlora = { rank = 2 }'
    folder = run_project(make_project(tmp_path, stages=frozen), tmp_path / "run").folder
    embeddings, lora = (read_checkpoint(path).tensors for path in sorted((folder / "checkpoints").iterdir()))
    assert [name for name in embeddings if "rows" in name] == ["trainables/embeddings/rows.clip_l"]
    assert [name for name in lora if "rows" in name] == ["rows/clip_l"]
    assert torch.equal(stored_rows(embeddings)["clip_l"], stored_rows(lora)["clip_l"])
    trained = load_file(folder / "exports/tiny_embeddings/cat.safetensors")
    assert torch.equal(trained["emb_params"], stored_rows(lora)["clip_l"])


def test_images_before_are_drawn_once_for_all_processes_of_a_run(tmp_path, monkeypatch):
    recipe = load_recipe(make_project(tmp_path))
    whole = run_project(recipe, tmp_path / "whole").folder
    image, before = tmp_path / "run/images/before-000-0.png", (whole / "images/before-000-0.png").read_bytes()

    def go(step):
        messages: list[str] = []
        with monkeypatch.context() as patch:
            if step:
                stopped_at(patch, step, signal.SIGINT)
            with pytest.raises(Stopped) if step else nullcontext():
                run_recipe(recipe, out=tmp_path / "run", progress=messages.append, bar=False)
        assert image.read_bytes() == before
        return "drawing sample images before training" in messages, image.stat().st_ino, image.stat().st_mtime_ns

    drawn = go(1)
    assert go(1) == (False, *drawn[1:])
    image.write_bytes(before[:-20])  # the process was killed while it wrote this
    assert go(None)[0]
    assert made_files(tmp_path / "run") == made_files(whole)
    assert manifest_of(tmp_path / "run")["images"] == manifest_of(whole)["images"]


def test_a_folder_without_a_checkpoint_gives_nothing(tmp_path):
    path = make_project(tmp_path)
    with pytest.raises(StageError, match="contains no readable checkpoint"):
        run_recipe(load_recipe(path), out=tmp_path / "x", progress=print, bar=False, source=tmp_path / "model")
    assert not (tmp_path / "x").exists()
