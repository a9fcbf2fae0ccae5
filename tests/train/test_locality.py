"""Locality regularisation: its formula and gradient written out, and that it does what it is for."""

import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from projects import make_project, run_project

from pivotune.pipeline.errors import StageError
from pivotune.pipeline.recipe.load import load_recipe
from pivotune.pipeline.rng import generator
from pivotune.pipeline.run import steps
from pivotune.pipeline.train import loop

KINDS = {"sd1": StableDiffusionPipeline, "sdxl": StableDiffusionXLPipeline}
OTHERS = ["a photo of a blue square", "an image of a teal star on a pink background", "a gold circle"]


def tuned(training):
    return list(training.trainables.parameters.values())


def answer(pipe, asked, text, sizes):
    added = None if text.pooled is None else {"text_embeds": text.pooled, "time_ids": sizes}
    return pipe.unet(asked.noisy, asked.timesteps, text.states, added_cond_kwargs=added).sample


def near(pivot, other):
    return None if pivot is None else pivot.detach() + 0.3 * (other - pivot.detach())


@pytest.mark.parametrize(
    ("family", "what"),
    [
        ("sd1", 'lora = [{ parts = ["denoiser"] }]'), ("sdxl", 'lora = [{ parts = ["denoiser"] }]'),
        ("sd1", 'finetune = [{ parts = ["denoiser"] }]'), ("sd1", 'lora = [{ parts = ["denoiser", "clip_l"] }]'),
    ],
)  # fmt: skip
def test_value_and_gradient_match_the_formula(tmp_path, monkeypatch, family, what):
    options = "{ weight = 2.0, alpha = 0.3, prompts = ['a blue square', 'a gold star', 'a ring'] }"
    recipe = load_recipe(make_project(tmp_path, family, train=f"{what}\nlocality = {options}"), ["train.steps=1"])
    one_step, seen = loop.one_step, []

    def compared(training, clock):
        pipe, parameters, before = (
            training.model.pipe,
            tuned(training),
            KINDS[family].from_pretrained(tmp_path / "model"),
        )
        draw = torch.Generator().manual_seed(0)
        with torch.no_grad():  # somewhere else than where training begins
            for parameter in parameters:
                parameter += 0.05 * torch.randn(parameter.shape, generator=draw)
        batch = training.dataset.at(0)
        training.injection.activate(batch.captions, train=True)
        asked = training.objective.sample(batch.latents, training.seed, 0)
        text = training.denoiser.encode(pipe, list(batch.captions))
        places = torch.randint(3, (2,), generator=generator(training.seed, "locality", 0)).tolist()
        others = [["a blue square", "a gold star", "a ring"][place] for place in places]
        now, then = (training.denoiser.encode(one, others) for one in (pipe, before))
        neighbours = [type(text)(near(text.states, one.states), near(text.pooled, one.pooled)) for one in (now, then)]
        target = answer(before, asked, neighbours[1], batch.sizes).detach()
        expected = 2.0 * ((answer(pipe, asked, neighbours[0], batch.sizes) - target) ** 2).mean()
        gradients = torch.autograd.grad(expected, parameters, allow_unused=True)
        wanted = [parameter.requires_grad for parameter in pipe.unet.parameters()]
        found = training.locality.loss(text, asked, batch.sizes, 0)
        assert [parameter.requires_grad for parameter in pipe.unet.parameters()] == wanted
        assert training.locality.difference == pytest.approx(float(found.detach()) / 2)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-7)
        for ours, theirs in zip(torch.autograd.grad(found, parameters, allow_unused=True), gradients, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-6)
        seen.append(float(expected.detach()))
        leaves = [rows.leaf for rows in training.injection.activate(batch.captions, train=True).values()]
        assert all(leaf.grad is None for leaf in leaves)  # the embeddings are the pivot: they feel nothing of it
        return one_step(training, clock)

    monkeypatch.setattr(loop, "one_step", compared)
    run_project(recipe, tmp_path / "run")
    assert seen[0] > 1e-6


def drift(tmp_path, monkeypatch, name, *options):
    """How far the tuned model's answers for other prompts are from the base model's after 20 steps."""
    train_steps, found = loop.train_steps, []
    wide = ["train.steps=20", "train.lora=[{ parts = ['denoiser'], learning_rate = 2e-2 }]", *options]

    def measured(training, first, seconds):
        yield from train_steps(training, first, seconds)
        before = StableDiffusionPipeline.from_pretrained(tmp_path / "model")
        draw = torch.Generator().manual_seed(5)
        noisy, times = torch.randn(12, 4, 8, 8, generator=draw), torch.randint(1000, (12,), generator=draw)
        with torch.no_grad():
            training.injection.activate([])
            states = training.denoiser.encode(before, OTHERS * 4).states
            tuned, old = (pipe.unet(noisy, times, states).sample for pipe in (training.model.pipe, before))
        found.append(float((tuned - old).square().mean()))

    monkeypatch.setattr(steps, "train_steps", measured)
    run_project(load_recipe(tmp_path / "recipe.toml", wide), tmp_path / name)
    return found[0]


def test_other_prompts_stay_closer_to_the_base_model(tmp_path, monkeypatch):
    make_project(tmp_path, captions="a photo of <cat> on a blue background")
    free = drift(tmp_path, monkeypatch, "free")
    kept = drift(tmp_path, monkeypatch, "held", "train.locality={ weight = 5.0 }")
    assert kept < 0.5 * free, (kept, free)


def test_locality_without_trained_weights_is_an_error(tmp_path):
    recipe = make_project(tmp_path, train="locality = {}")
    with pytest.raises(StageError, match="locality has no effect"):
        run_project(recipe, tmp_path / "run")
