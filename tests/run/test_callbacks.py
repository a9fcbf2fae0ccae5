"""Images, saves and trackers while a stage trains: they show what is true, and change nothing of the training."""

import json
import os
import signal
from types import SimpleNamespace

import pytest
from click.testing import CliRunner
from PIL import Image
from projects import make_project, run_project

from pivotune.converters.safetensors_file import read as read_safetensors
from pivotune.pipeline.cli.main import pivotune
from pivotune.pipeline.errors import StageError
from pivotune.pipeline.recipe.intervals import Clock, parse_interval
from pivotune.pipeline.recipe.load import load_recipe
from pivotune.pipeline.run import callbacks
from pivotune.pipeline.run.callbacks import flat
from pivotune.pipeline.run.signals import Stopped
from pivotune.pipeline.train import loop

WATCH = ["train.watch.sample_every='2 steps'", "train.watch.prompts=['<cat>', 'a blue ring']", "train.watch.count=2"]
SAVE = ["train.save.every='2 steps'", "train.save.keep=2"]
MORE = '[[embedding]]\nplaceholder = "<dog>"\ninitial_text = "teal"\ntrain = false'


def project(folder, family="sd1", **parts):
    folder.mkdir()
    train = "lora = [{ rank = 2, dropout = 0.5 }]\n" + parts.pop("train", "")
    return make_project(folder, family, train=train.rstrip(), **parts)


def exports(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*.safetensors"))}


def rows_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text("utf-8").splitlines()]


def test_samples_and_saves_change_no_trained_byte(tmp_path):
    options = ["train.steps=5"]
    recipe = project(tmp_path / "a", more=MORE)
    plain = run_project(load_recipe(recipe, options), tmp_path / "plain").folder
    seen = run_project(load_recipe(recipe, [*options, *WATCH, *SAVE]), tmp_path / "seen").folder
    assert exports(plain / "exports") == exports(seen / "exports")
    losses = [[row["loss"] for row in rows_of(folder)] for folder in (plain, seen)]
    assert losses[0] == losses[1]
    rows = rows_of(seen)
    assert [row["stage"] for row in rows] == [3] * 5  # counted from 1, as people do
    assert [row["step"] for row in rows if "images" in row] == [2, 4]
    first, second = (rows[step]["images"] for step in (1, 3))
    assert [(one["prompt"], one["seed"]) for one in first] == [(p, s) for p in ("<cat>", "a blue ring") for s in (0, 1)]
    images = [[Image.open(seen / one["path"]).tobytes() for one in moment] for moment in (first, second)]
    assert len(set(images[0])) == 4
    assert images[0][0] != images[1][0]  # the embedding has moved
    assert "Sample images during training" in (seen / "report.html").read_text("utf-8")
    assert not (plain / "saves").exists()


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_a_save_is_what_an_export_at_that_step_would_be(tmp_path, family):
    export = 'targets = ["a1111", "kohya", "diffusers"]\ndtype = "float16"'
    path = project(tmp_path / "a", family, export=export, train='save = { every = "2 steps" }')
    folder = run_project(load_recipe(path, ["train.steps=4"]), tmp_path / "run").folder
    assert sorted(p.name for p in (folder / "saves").iterdir()) == ["stage-3-step-000002", "stage-3-step-000004"]
    assert next(row["saved"] for row in rows_of(folder) if "saved" in row) == "saves/stage-3-step-000002"
    saves = [exports(folder / "saves" / name) for name in ("stage-3-step-000002", "stage-3-step-000004")]
    assert saves[1] == exports(folder / "exports")  # the last save is the export itself, to the byte
    assert saves[0].keys() == saves[1].keys()
    assert saves[0]["tiny_embeddings/cat.safetensors"] != saves[1]["tiny_embeddings/cat.safetensors"]
    facts = json.loads((folder / "saves" / "stage-3-step-000002" / "save.json").read_text("utf-8"))
    assert (facts["stage"], facts["step"]) == (3, 2)
    for row in facts["artefacts"]:
        assert (folder / "saves" / "stage-3-step-000002" / row["path"]).stat().st_size == row["bytes"]
    tensors, _ = read_safetensors(folder / "saves" / "stage-3-step-000002" / "a1111" / "tiny.safetensors")
    assert any(name.startswith("bundle_emb.") for name in tensors)  # bundled where the export stage says so


def test_only_the_last_saves_are_kept_and_none_is_overwritten(tmp_path, monkeypatch):
    one_step, left = loop.one_step, tmp_path / "run/saves/.stage-3-step-000001.old/half"

    def killed_before(training, clock):
        if clock.step == 0:  # as if an earlier process had been killed while it deleted the first save
            left.mkdir(parents=True)
        return one_step(training, clock)

    monkeypatch.setattr(loop, "one_step", killed_before)
    path = project(tmp_path / "a", train='save = { every = "1 steps", keep = 2 }')
    folder = run_project(load_recipe(path, ["train.steps=4"]), tmp_path / "run").folder
    assert sorted(p.name for p in (folder / "saves").iterdir()) == ["stage-3-step-000003", "stage-3-step-000004"]


def test_copies_of_saves_are_kept(tmp_path, monkeypatch):
    one_step, saves = loop.one_step, tmp_path / "run/saves"
    copies = ("stage-3-step-000001.zip", "stage-3-step-000001 - Copy")

    def copied_before(training, clock):
        if clock.step == 1:  # by the user, while the run goes
            (saves / copies[0]).write_bytes(b"PK")
            (saves / copies[1]).mkdir()
        return one_step(training, clock)

    monkeypatch.setattr(loop, "one_step", copied_before)
    path = project(tmp_path / "a", train='save = { every = "1 steps", keep = 1 }')
    run_project(load_recipe(path, ["train.steps=3"]), tmp_path / "run")
    assert sorted(p.name for p in saves.iterdir()) == sorted([*copies, "stage-3-step-000003"])


def test_a_save_that_fails_leaves_no_partial_folder(tmp_path, monkeypatch):
    calls = []

    def full(run, contents, folder, options):
        calls.append(folder)
        if len(calls) == 2:
            (folder / "half").write_text("a")
            raise OSError(28, "No space left on device")
        (folder / "whole").write_text("a")

    monkeypatch.setattr(callbacks, "write_exports", full)
    path = project(tmp_path / "a", train='save = { every = "1 steps" }')
    with pytest.raises((OSError, StageError), match="No space left"):
        run_project(load_recipe(path, ["train.steps=3"]), tmp_path / "run")
    assert [p.name for p in (tmp_path / "run" / "saves").iterdir()] == ["stage-3-step-000001"]
    assert (tmp_path / "run" / "last-good" / "tiny_embeddings" / "cat.safetensors").is_file()


def test_a_fine_tuned_model_is_saved_with_its_embeddings(tmp_path):
    from diffusers import StableDiffusionPipeline

    (tmp_path / "a").mkdir()
    tuned = 'finetune = [{ parts = ["denoiser", "clip_l"] }]\nsave = { every = "2 steps" }'
    path = make_project(tmp_path / "a", train=tuned, export='model_dtype = "float32"')
    folder = run_project(load_recipe(path, ["train.steps=2"]), tmp_path / "run").folder
    save = folder / "saves" / "stage-3-step-000002"
    assert exports(save) == exports(folder / "exports")
    pipe = StableDiffusionPipeline.from_pretrained(save / "tiny_model")
    assert len(pipe.tokenizer) == pipe.text_encoder.get_input_embeddings().weight.shape[0]


AROUND = """
[[stage]]
kind = "train"
steps = 2
embeddings = false
save = { every = "1 steps" }
[[stage.lora]]
rank = 2
learning_rate = 0.05
"""


@pytest.mark.parametrize("parts", ['["denoiser"]', '["clip_l"]'])
def test_a_save_of_a_fine_tuned_model_with_a_lora_contains_both(tmp_path, parts):
    """The LoRA lies on the tuned part itself, or on another: the model in the save is the one without it."""
    tuned = f"finetune = {{ parts = {parts}, learning_rate = 1e-3 }}"
    path = make_project(tmp_path, train=tuned, stages=AROUND, export='targets = ["comfyui"]')
    folder = run_project(path, tmp_path / "run").folder
    assert exports(folder / "saves" / "stage-4-step-000002") == exports(folder / "exports")
    first = exports(folder / "saves" / "stage-4-step-000001")
    assert {"tiny_model.safetensors", "tiny_model/unet/diffusion_pytorch_model.safetensors", "tiny.safetensors"} <= set(
        first
    )
    assert first["tiny_model.safetensors"] == exports(folder / "exports")["tiny_model.safetensors"]
    assert first["tiny.safetensors"] != exports(folder / "exports")["tiny.safetensors"]


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("2 steps", [2, 4, 6]),
        ("1 epoch", [3, 5]),
        ("50 %", [3, 6]),
        ("10 seconds", [3, 5]),
        ("5 steps", [5]),
        ("never", []),
    ],
)
def test_intervals(rule, expected):
    every = parse_interval(rule)
    assert [step for step in range(1, 7) if every.due(Clock(step, 6, 2.5, 4.0 * step), 4.0 * (step - 1))] == expected


def test_every_number_of_a_row_has_a_key():
    row = {
        "loss": 1,
        "learning_rate": {"embeddings": 0.5},
        "embeddings": {"<a>": {"clip_l": {"norm": [1.0, 2.0], "x": None}}},
    }
    expected = {
        "loss": 1.0,
        "learning_rate/embeddings": 0.5,
        "embeddings/<a>/clip_l/norm/0": 1.0,
        "embeddings/<a>/clip_l/norm/1": 2.0,
    }
    assert flat(row | {"saved": "saves/x", "flag": True}) == expected


def test_tensorboard_gets_numbers_and_images(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    watch = 'watch = { sample_every = "2 steps", trackers = ["tensorboard"] }'
    path = project(tmp_path / "a", train=watch)
    folder = run_project(load_recipe(path, ["train.steps=4"]), tmp_path / "run").folder
    events = EventAccumulator(str(folder / "tracking" / "tiny-stage-3"))
    events.Reload()
    losses = [event.value for event in events.Scalars("loss")]
    assert losses == pytest.approx([row["loss"] for row in rows_of(folder)], rel=1e-6)
    assert {"gradient_norm", "learning_rate/embeddings", "embeddings/<cat>/clip_l/norm/0"} <= set(
        events.Tags()["scalars"]
    )
    assert [event.step for event in events.Images("images")] == [2, 4]


def test_a_missing_tracker_names_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(callbacks.importlib.util, "find_spec", lambda name: None)
    path = project(tmp_path / "a", train='watch = { trackers = ["wandb"] }')
    with pytest.raises(StageError, match=r"wandb is not installed; install it \(pip install wandb\)"):
        run_project(load_recipe(path, ["train.steps=1"]), tmp_path / "run")


@pytest.mark.parametrize("fails", ["log", "finish"])
def test_a_tracker_that_fails_gives_one_warning_and_the_run_continues(tmp_path, monkeypatch, fails):
    logged = {"wandb": [], "aim": []}

    def tracker(name, title, folder):
        def recorder_of(what):
            def method(*values, step=0, **options):
                logged[name].append((what, step))
                if name == "wandb" and what == fails and step != 1:
                    raise ConnectionError("no network\nand a long story")

            return method

        return SimpleNamespace(name=name, **{what: recorder_of(what) for what in ("log", "log_images", "finish")})

    monkeypatch.setattr(callbacks, "_start_tracker", tracker)
    watch = 'watch = { sample_every = "2 steps", trackers = ["wandb", "aim"] }'
    folder = run_project(load_recipe(project(tmp_path / "a", train=watch)), tmp_path / "run").folder
    warnings = json.loads((folder / "manifest.json").read_text("utf-8"))["warnings"]
    when = "at the end" if fails == "finish" else "after step 2"
    assert warnings == [f"watch.trackers: wandb failed {when} (no network); the run continues without it"]
    assert logged["aim"] == [("log", 1), ("log", 2), ("log_images", 2), ("log", 3), ("finish", 0)]
    assert logged["wandb"] == logged["aim"][: logged["aim"].index((fails, 0 if fails == "finish" else 2)) + 1]


def test_check_finds_wrong_intervals(tmp_path):
    path = project(
        tmp_path / "a", train='watch = { sample_every = "10 stps" }\nsave = { every = "0 steps" }\nlocality = {}'
    )
    output = CliRunner().invoke(pivotune, ["check", str(path)]).output
    assert "did you mean '10 steps'" in output
    assert "0 never happens" in output


def test_a_run_that_was_stopped_ends_in_the_same_saves_and_images(tmp_path, monkeypatch):
    tuned = ["train.finetune=[{ parts = ['denoiser'] }]", "train.locality={ weight = 2.0 }", "train.steps=5"]
    recipe = load_recipe(make_project(tmp_path), [*WATCH[:1], *SAVE, *tuned])
    whole = run_project(recipe, tmp_path / "whole").folder
    one_step, calls = loop.one_step, []

    def interrupted(training, clock):
        calls.append(clock.step)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return one_step(training, clock)

    monkeypatch.setattr(loop, "one_step", interrupted)
    with pytest.raises(Stopped):
        run_project(recipe, tmp_path / "run")
    run_project(recipe, tmp_path / "run")
    assert calls == [0, 1, 2, 3, 4]
    for name in ("exports", "saves"):
        assert exports(tmp_path / "run" / name) == exports(whole / name)
    both = [rows_of(tmp_path / "run"), rows_of(whole)]
    for row in (*both[0], *both[1]):
        del row["seconds"]
    assert both[0] == both[1]
    assert "locality" in both[0][0]
