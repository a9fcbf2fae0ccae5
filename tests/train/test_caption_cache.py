"""With frozen text encoders each caption is encoded once, and the steps match those without the cache."""

import json

import pytest
import torch
from projects import interrupt, make_project, run_project
from run.killing import made_files
from transformers import T5EncoderModel

from pivotune.pipeline.models.denoisers import DENOISERS
from pivotune.pipeline.models.text import CaptionCache, Text
from pivotune.pipeline.recipe.load import load_recipe
from pivotune.pipeline.run import training as run_training

AROUND = """
[[stage]]
kind = "train"
steps = 4
batch_size = 2
embeddings = false
lora = { rank = 2, learning_rate = 0.05 }
"""


def metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text("utf-8").splitlines()]


def losses(folder):
    return [row["loss"] for row in metrics(folder)]


@pytest.mark.parametrize(("family", "kind"), [("sd1", "unet"), pytest.param("sdxl", "unet_xl", marks=pytest.mark.slow)])
def test_a_lora_with_frozen_embeddings_encodes_each_caption_once(tmp_path, monkeypatch, family, kind):
    recipe = load_recipe(make_project(tmp_path, family, stages=AROUND), ["samples.prompts=[]"])
    for number in range(3):
        (tmp_path / "images" / f"{number}.txt").write_text(f"a photo of <cat>, {number}", "utf-8")
    encode, asked = type(DENOISERS[kind]).encode, []

    def counted(pipe, captions):
        asked.append(captions)
        return encode(pipe, captions)

    monkeypatch.setattr(DENOISERS[kind], "encode", counted, raising=False)
    cached = losses(run_project(recipe, tmp_path / "cached").folder)
    assert sorted(captions[0] for captions in asked[3:]) == [f"a photo of <cat>, {number}" for number in range(3)]
    monkeypatch.setattr(run_training, "CaptionCache", lambda *arguments: None)
    uncached = losses(run_project(recipe, tmp_path / "uncached").folder)
    assert cached[:3] == uncached[:3]
    assert cached == pytest.approx(uncached, rel=1e-5)
    assert len(asked) == 3 + 3 + 3 + 4


def test_the_last_used_captions_are_cached():
    class Counting:
        def __init__(self):
            self.asked = []

        def encode(self, pipe, captions):
            self.asked += captions
            return Text(torch.full((1, 2, 4), float(captions[0])), torch.full((1, 3), float(captions[0])))

    denoiser = Counting()
    texts = CaptionCache(denoiser, None, limit=2 * 4 * (2 * 4 + 3))  # two captions
    cpu = torch.device("cpu")
    both = texts(["1", "2"], cpu)
    assert both.states[:, 0, 0].tolist() == both.pooled[:, 0].tolist() == [1.0, 2.0]
    texts(["1", "3"], cpu)  # 2 is the one that was used least lately
    assert texts(["1", "3"], cpu).states[:, 0, 0].tolist() == [1.0, 3.0]
    assert denoiser.asked == ["1", "2", "3"]
    texts(["2"], cpu)
    assert denoiser.asked == ["1", "2", "3", "2"]


def flux(folder, captions=("a photo of <cat>", "<cat>, at night", "a photo")):
    rates = "learning_rate = { clip_l = 0.05, t5 = 0.0 }"
    path = make_project(folder, "flux", train="resolution = 16", embedding=rates, export="targets = []")
    recipe = load_recipe(path, ["samples.prompts=[]"])
    for number, caption in enumerate(captions):
        (folder / "images" / f"{number}.txt").write_text(caption, "utf-8")
    return recipe


def test_an_encoder_whose_vectors_are_frozen_encodes_each_caption_once(tmp_path, monkeypatch):
    recipe, calls = flux(tmp_path), []
    forward = T5EncoderModel.forward

    def counted(self, input_ids=None, **options):
        calls.append(len(input_ids))
        return forward(self, input_ids, **options)

    monkeypatch.setattr(T5EncoderModel, "forward", counted)
    cached = run_project(recipe, tmp_path / "cached").folder
    assert calls.count(1) == 3
    assert 2 not in calls
    monkeypatch.setattr(run_training, "frozen_encoders", lambda *arguments: ())
    uncached = run_project(recipe, tmp_path / "uncached").folder
    assert 2 in calls
    assert losses(cached) == pytest.approx(losses(uncached), rel=1e-5)
    [encoders] = [one["encoders"] for one in json.loads((cached / "manifest.json").read_text("utf-8"))["embeddings"]]
    assert max(encoders["t5"]["distance"]) == 0 < min(encoders["clip_l"]["distance"])


def test_cached_outputs_of_a_frozen_encoder_resume_to_the_same_bytes(tmp_path, monkeypatch):
    recipe = flux(tmp_path)
    whole = run_project(recipe, tmp_path / "whole").folder
    interrupt(monkeypatch, recipe, tmp_path / "parts")
    run_project(recipe, tmp_path / "parts")
    assert made_files(tmp_path / "parts") == made_files(whole)
