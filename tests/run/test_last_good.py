"""What a run leaves when it fails or is stopped: all that it has trained, and why it ended."""

import json
import os
import signal

import pytest
import torch
from diffusers import StableDiffusionPipeline
from projects import make_project, run_project
from run.killing import assert_same
from run.launching import launched

from pivotune.converters.safetensors_file import read
from pivotune.pipeline.errors import StageError
from pivotune.pipeline.export import write
from pivotune.pipeline.recipe.load import load_recipe
from pivotune.pipeline.run import outcome as finishing
from pivotune.pipeline.run.signals import Stopped
from pivotune.pipeline.tensors import from_raw
from pivotune.pipeline.train import loop

BOTH = """
[[stage.lora]]
rank = 2
learning_rate = 0.01
[[stage.finetune]]
parts = ["clip_l"]
learning_rate = 1e-3
"""


def spoil(monkeypatch, call, value=float("nan")):
    true_loss, calls = loop.mean_loss, []

    def loss(*arguments):
        calls.append(1)
        return true_loss(*arguments) * (value if len(calls) == call else 1.0)

    monkeypatch.setattr(loop, "mean_loss", loss)


def stopped_in(monkeypatch, step):
    one_step = loop.one_step

    def interrupted(training, clock):
        if clock.step + 1 == step:
            os.kill(os.getpid(), signal.SIGINT)
        return one_step(training, clock)

    monkeypatch.setattr(loop, "one_step", interrupted)


def same_files(one, two):
    meant, found = (read(path)[0] for path in (one, two))
    assert meant.keys() == found.keys()
    assert all(torch.equal(from_raw(found[name]), from_raw(raw)) for name, raw in meant.items())


def test_embeddings_lora_and_fine_tuned_weights_of_the_last_good_step_are_kept(tmp_path, monkeypatch):
    recipe = make_project(tmp_path, train=f"ema = 0.9\n{BOTH}", export='model_dtype = "float32"\nmodel = ["folder"]')
    good = run_project(load_recipe(recipe, ["train.steps=2"]), tmp_path / "good").folder / "exports"
    spoil(monkeypatch, 3)
    with pytest.raises(StageError, match="the loss at step 3 is nan"):
        run_project(recipe, tmp_path / "run")
    kept = tmp_path / "run" / "last-good"
    assert sorted(path.name for path in kept.iterdir()) == ["tiny.safetensors", "tiny_embeddings", "tiny_model"]
    same_files(good / "tiny_embeddings" / "cat.safetensors", kept / "tiny_embeddings" / "cat.safetensors")
    same_files(good / "tiny.safetensors", kept / "tiny.safetensors")
    for part in ("unet/diffusion_pytorch_model", "text_encoder/model", "vae/diffusion_pytorch_model"):
        same_files(good / "tiny_model" / f"{part}.safetensors", kept / "tiny_model" / f"{part}.safetensors")
    StableDiffusionPipeline.from_pretrained(kept / "tiny_model", local_files_only=True)


def test_a_guard_stop_leaves_ema_weights_of_sharded_embeddings(tmp_path):
    band = "[stage.guard]\nnorm = 'stop'\nnorm_band = { low = 0.999, high = 1.001 }"
    recipe = make_project(tmp_path, train=f"shard_optimizer_from = 1\nema = 0.9\n{band}")
    ended = launched(tmp_path, lambda rank: run_project(recipe, tmp_path / "run"))
    assert ended.codes == [1, 1]
    assert "guard.norm = 'stop'" in ended.outputs[0]
    (point,) = (tmp_path / "run/checkpoints").iterdir()
    step = int(point.stem.rpartition("-")[2])
    short = load_recipe(recipe, [f"train.steps={step}", "train.guard.norm='off'"])
    assert launched(tmp_path, lambda rank: run_project(short, tmp_path / "good")).codes == [0, 0]
    places = [tmp_path / "good/exports", tmp_path / "run/last-good"]
    same_files(*(place / "tiny_embeddings/cat.safetensors" for place in places))


def test_a_run_that_is_stopped_repeatedly_keeps_its_last_state(tmp_path, monkeypatch):
    recipe = load_recipe(make_project(tmp_path, train="finetune = {}"), ["train.steps=5"])
    for last in (2, 4):
        stopped_in(monkeypatch, last)
        with pytest.raises(Stopped):
            run_project(recipe, tmp_path / "run")
        monkeypatch.undo()
    kept = tmp_path / "run" / "last-good"
    assert [path.name for path in kept.rglob("*.*")] == ["cat.safetensors"]  # the checkpoint has the tuned weights
    shorter = load_recipe(recipe.path, ["train.steps=4"])
    whole = run_project(shorter, tmp_path / "whole").folder / "exports"
    same_files(whole / "tiny_embeddings" / "cat.safetensors", kept / "tiny_embeddings" / "cat.safetensors")


@pytest.mark.parametrize("how", ["fails", "is stopped twice"])
def test_a_recipe_with_the_name_of_its_embedding_keeps_embedding_and_lora(tmp_path, monkeypatch, how):
    """The recipe that `pivotune new` writes has the embedding's name where the file has."""
    recipe = load_recipe(make_project(tmp_path, train="lora = { rank = 2 }"), ['name="cat"', "train.steps=5"])
    if how == "fails":
        spoil(monkeypatch, 3)
        with pytest.raises(StageError, match="the loss at step 3 is nan"):
            run_project(recipe, tmp_path / "run")
    for last in (2, 4) if how == "is stopped twice" else ():
        stopped_in(monkeypatch, last)
        with pytest.raises(Stopped):
            run_project(recipe, tmp_path / "run")
        monkeypatch.undo()
    kept = tmp_path / "run" / "last-good"
    assert {path.relative_to(kept).as_posix() for path in kept.rglob("*.*")} == {
        "cat.safetensors", "cat_embeddings/cat.safetensors"
    }  # fmt: skip
    assert json.loads((tmp_path / "run" / "manifest.json").read_text("utf-8"))["warnings"] == []
    assert {name.partition("_")[0] for name in read(kept / "cat.safetensors")[0]} == {"lora"}


def test_an_embedding_with_the_name_of_the_lora_file_is_kept(tmp_path):
    """diffusers has a LoRA file of its own, beside the embeddings' files."""
    recipe = make_project(tmp_path, captions="a photo of <tiny_lora>", train="lora = { rank = 2 }")
    recipe.write_text(recipe.read_text("utf-8").replace("<cat>", "<tiny_lora>"), "utf-8")
    exports = run_project(recipe, tmp_path / "run").folder / "exports" / "diffusers"
    names = {path.name for path in exports.glob("*.safetensors")}
    assert names == {"tiny_lora.safetensors", "tiny_lora_.safetensors"}
    assert "tiny_lora_.safetensors" in (exports / "load.py").read_text("utf-8")


def test_a_full_disk_does_not_hide_why_a_run_ended(tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(write, "write_standalone", full)
    spoil(monkeypatch, 2)
    with pytest.raises(StageError, match="the loss at step 2 is nan"):
        run_project(make_project(tmp_path), tmp_path / "run")
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text("utf-8"))
    assert "the loss at step 2 is nan" in manifest["error"]
    assert "could not be written" in manifest["warnings"][-1]
    assert "No space left" in manifest["warnings"][-1]
    assert not list((tmp_path / "run").glob("*last-good*"))
    assert not list((tmp_path / "run").glob(".last-good*"))


def stopped_once(recipe, run):
    """A run that was stopped after its second step, and has `last-good/`."""
    with pytest.MonkeyPatch.context() as patch:
        stopped_in(patch, 2)
        with pytest.raises(Stopped):
            run_project(recipe, run)
    assert (run / "last-good/tiny_embeddings/cat.safetensors").is_file()


def old_vectors(run):
    return [path for path in run.rglob("*") if "last-good" in path.name]


def test_a_finished_run_has_no_last_good_folder(tmp_path, monkeypatch):
    recipe, run = make_project(tmp_path), tmp_path / "run"
    whole = run_project(recipe, tmp_path / "whole").folder
    stopped_once(recipe, run)

    def full(*arguments):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(finishing, "write_json", full)
        with pytest.raises(StageError, match="manifest or report cannot be written"):
            run_project(recipe, run)
    assert (run / "last-good/tiny_embeddings/cat.safetensors").is_file()  # which is not the end yet
    run_project(recipe, run)
    assert not old_vectors(run)
    assert_same(run, whole)
