"""The shipped model: small, whole, loadable, and the one that was examined."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors import safe_open

from pivotune.recipes.micro.build import build_scheduler
from pivotune.recipes.micro.exam import fingerprints, full_caption, questions
from pivotune.recipes.micro.sample import load, sample
from pivotune.recipes.micro.tokenizer import build_tokenizer

MICRO = Path(__file__).parents[2] / "recipes" / "micro"
MODEL = MICRO / "model"
LIMIT = 8 * 2**20
PARTS = {
    "text_encoder": "text_encoder/model.safetensors",
    "unet": "unet/diffusion_pytorch_model.safetensors",
    "vae": "vae/diffusion_pytorch_model.safetensors",
}


@pytest.fixture(scope="module")
def pipe() -> Any:
    """The pipeline in float32."""
    return load(MODEL)


def test_the_model_is_small_and_for_everyone_to_read() -> None:
    files = [file for file in MODEL.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) <= LIMIT
    assert all(file.stat().st_mode & stat.S_IROTH for file in files)


def test_no_file_tells_where_it_was_built() -> None:
    for file in MODEL.rglob("*.json"):
        text = file.read_text(encoding="utf-8")
        assert "_name_or_path" not in text
        assert not any(place in text for place in ("/work", "/home", "/root", "/tmp"))


@pytest.mark.parametrize("part", PARTS)
def test_every_tensor_is_half_precision_and_is_loaded(pipe: Any, part: str) -> None:
    own = getattr(pipe, part).state_dict()
    with safe_open(MODEL / PARTS[part], "pt") as file:
        names = list(file.keys())
        assert {name.removeprefix("text_model.") for name in names} == set(own)
        for name in names:
            stored = file.get_tensor(name)
            assert stored.dtype == torch.float16
            assert torch.equal(stored.float(), own[name.removeprefix("text_model.")]), name


def test_text_encoder_keys_are_spelt_as_older_versions_read_them() -> None:
    with safe_open(MODEL / PARTS["text_encoder"], "pt") as file:
        assert all(name.startswith("text_model.") for name in file.keys())  # noqa: SIM118


def test_marks_agree_between_tokenizer_and_encoder(pipe: Any) -> None:
    config, tokenizer = pipe.text_encoder.config, pipe.tokenizer
    assert config.eos_token_id == tokenizer.eos_token_id == tokenizer.pad_token_id == config.vocab_size - 1
    assert config.bos_token_id == tokenizer.bos_token_id
    assert len(tokenizer) == config.vocab_size


def test_the_shipped_tokenizer_is_the_one_the_grammar_builds(pipe: Any) -> None:
    built, text = build_tokenizer(), "a close-up photo of * zebra, striped red and white ring on a teal background"
    assert pipe.tokenizer(text).input_ids == built(text).input_ids
    assert json.loads((MODEL / "tokenizer" / "vocab.json").read_text(encoding="utf-8")) == built.get_vocab()


def test_the_scheduler_is_the_one_it_was_trained_with(pipe: Any) -> None:
    assert dict(pipe.scheduler.config)["prediction_type"] == "v_prediction"
    assert torch.equal(pipe.scheduler.alphas_cumprod, build_scheduler().alphas_cumprod)


def test_it_draws_the_same_finite_images_twice(pipe: Any) -> None:
    prompts = ["a photo of a red circle on a white background", "a blue star on pink"]
    first, second = sample(pipe, prompts, seed=1), sample(pipe, prompts, seed=1)
    assert first.shape == (2, 64, 64, 3)
    assert np.array_equal(first, second)
    assert first.std() > 10


def test_it_draws_for_people_who_name_no_data_type() -> None:
    plain = StableDiffusionPipeline.from_pretrained(MODEL, local_files_only=True)
    plain.set_progress_bar_config(disable=True)
    [image] = plain("a blue star on pink", num_inference_steps=2).images
    assert image.size == (64, 64)
    assert np.asarray(image).std() > 10


def test_the_shares_belong_to_these_weights() -> None:
    for name in ("judged.json", "learned.json"):
        measured = json.loads((MICRO / name).read_text(encoding="utf-8"))
        assert measured["sha256"] == fingerprints(MODEL), f"{name} is of other weights: measure again"


def test_the_exam_asks_for_whole_scenes() -> None:
    asked = questions(20, seen=set())
    captions = [full_caption(scene) for scene in asked]
    assert len(set(captions)) == 20
    assert questions(20, seen={captions[0]})[0] != asked[0]


def test_the_card_says_what_was_measured() -> None:
    card = (MICRO / "CARD.md").read_text(encoding="utf-8")
    judged = json.loads((MICRO / "judged.json").read_text(encoding="utf-8"))
    learned = json.loads((MICRO / "learned.json").read_text(encoding="utf-8"))
    for judge in ("drawing", "classifier"):
        shares = [
            f"{judged[judge][head]:.1%}".replace("%", " %") for head in ("background", "colour", "shape", "texture")
        ]
        assert f"| {' | '.join(shares)} |" in card
    for name, measured in learned["things"].items():
        line = next(line for line in card.splitlines() if line.startswith(f"| `{name}` ["))
        for cell in ("before", "best words", "embedding", "embedding and LoRA"):
            assert f"| {100 * measured[cell]['hits']:.0f} %, {measured[cell]['median distance']} " in line
