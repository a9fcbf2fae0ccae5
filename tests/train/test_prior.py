"""Targets from the model without the LoRA: around masks, and for class images of any subject."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from projects import make_project, run_project

from pivotune.pipeline.errors import StageError
from pivotune.pipeline.recipe.options import ObjectiveOptions
from pivotune.pipeline.recipe.typed import options_of
from pivotune.pipeline.train.loss import NoisyBatch, example_losses

DRAW = torch.Generator().manual_seed(0)
PREDICTION, TARGET, BASE = (torch.randn(2, 4, 2, 2, generator=DRAW) for _ in range(3))
MASK = torch.tensor([[[[1.0, 0.0], [0.5, 1.0]]], [[[1.0, 1.0], [1.0, 1.0]]]])


@pytest.mark.parametrize("normalize", [False, True])
def test_the_masked_loss_has_both_parts(normalize):
    options = options_of(ObjectiveOptions, unmasked_weight=0.25, normalize_mask=normalize, masked_prior_weight=3.0)
    batch = NoisyBatch(torch.zeros(2, 4, 2, 2), torch.zeros(2), TARGET, base=BASE)
    found = example_losses(PREDICTION, batch, options, MASK)
    for number in range(2):
        raised = MASK[number].clamp(min=0.25)
        rest = 1 - raised
        own = (PREDICTION[number] - TARGET[number]) ** 2 * raised
        kept = (PREDICTION[number] - BASE[number]) ** 2 * rest
        if normalize:
            own, kept = own / raised.mean(), kept / rest.mean().clamp(min=1e-6)
        torch.testing.assert_close(found[number], (own + 3.0 * kept).mean())


def masked_project(folder: Path, objective: str, **parts: str) -> Path:
    train = f"resolution = 16\nobjective = {{ {objective} }}\n{parts.pop('train', '')}"
    recipe = make_project(folder, train=train, **parts)
    for number in range(3):
        mask = Image.new("L", (16, 20), 0)
        mask.paste(255, (0, 0, 8, 20))
        mask.save(folder / "images" / f"{number}-mask.png")
    return recipe


def losses(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text("utf-8").splitlines()]


LORA = "lora = { rank = 2, learning_rate = 0.05 }"


def test_the_prior_matters_once_the_lora_has_moved(tmp_path):
    """In the first step the LoRA changes nothing, so the model predicts what it did without it."""
    plain = masked_project(tmp_path / "a", "unmasked_weight = 0.0", train=LORA)
    with_prior = masked_project(tmp_path / "b", "unmasked_weight = 0.0, masked_prior_weight = 10.0", train=LORA)
    first = losses(run_project(plain, tmp_path / "1").folder)
    second = losses(run_project(with_prior, tmp_path / "2").folder)
    assert first[0] == second[0]
    assert second[1] > first[1]  # after the same first update


def test_class_images_may_take_the_models_prediction_as_their_target(tmp_path):
    concept = '[[concept]]\nimages = "images"\nprior = true\ncaptions = ["a drawing"]\nprior_target = "{}"'
    runs = {}
    for target in ("image", "model"):
        recipe = make_project(tmp_path / target, train=LORA, more=concept.format(target))
        runs[target] = losses(run_project(recipe, tmp_path / f"run-{target}").folder)
    assert runs["model"][0] < runs["image"][0]


@pytest.mark.parametrize(
    ("train", "text"),
    [
        ("", "has no effect: this stage trains no LoRA"),
        ("finetune = { parts = ['denoiser'], learning_rate = 1e-4 }", "is for a LoRA"),
    ],
)
def test_it_needs_a_lora(tmp_path, train, text):
    with pytest.raises(StageError, match=text):
        run_project(masked_project(tmp_path, "masked_prior_weight = 1.0", train=train), tmp_path / "run")
