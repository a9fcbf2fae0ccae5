"""One training step against the formula: loss, gradient and update."""

import pytest
import torch
from projects import make_project, run_recipe

from pivotune.pipeline.recipe.load import load_recipe
from pivotune.pipeline.train import loop


def plain_loss(training):
    """The loss of the first batch, written out."""
    batch = training.dataset.at(0)
    noise, times = training.objective.draw(batch.latents, training.seed, 0)
    text = training.denoiser.encode(training.model.pipe, list(batch.captions))
    added = {}
    if text.pooled is not None:
        sizes = [20.0, 16.0, 2.0, 0.0, 16.0, 16.0]  # images of 16x20, cut to 16x16
        ids = torch.tensor([sizes] * len(batch.captions))
        added = {"added_cond_kwargs": {"text_embeds": text.pooled, "time_ids": ids}}
    noisy = training.objective.process.add_noise(batch.latents, noise, times)
    answer = training.model.pipe.unet(noisy, times, text.states, **added).sample
    return ((answer - noise) ** 2).mean()


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_a_step_matches_the_formula(tmp_path, monkeypatch, family):
    recipe = load_recipe(make_project(tmp_path, family), ["train.steps=1", "train.clip_norm=0"])
    one_step, seen = loop.one_step, {}

    def compared(training, clock):
        rows = training.injection.rows
        before = {key: one.values.clone() for key, one in rows.items()}
        active = training.injection.activate(training.dataset.at(0).captions, train=True)
        loss = plain_loss(training)
        loss.backward()
        gradients = {key: one.leaf.grad.clone() for key, one in active.items()}
        row = one_step(training, clock)
        seen["loss"] = (row["loss"], float(loss.detach()))
        norm = torch.cat([g.flatten() for g in gradients.values()]).norm()
        seen["norm"] = (row["gradient_norm"], float(norm))
        for key, gradient in gradients.items():  # Adam's first step: the sign of the gradient, but for eps
            expected = before[key] - 1e-2 * gradient / (gradient.abs() + 1e-8)
            torch.testing.assert_close(rows[key].values, expected, rtol=1e-4, atol=1e-6)
        return row

    monkeypatch.setattr(loop, "one_step", compared)
    run_recipe(recipe, out=tmp_path / "run", progress=lambda text: None, bar=False)
    assert seen["loss"][0] == pytest.approx(seen["loss"][1], rel=1e-6)
    assert seen["norm"][0] == pytest.approx(seen["norm"][1], rel=1e-5)


THINGS = """
[[stage.lora]]
parts = ["clip_g"]
rank = 2
learning_rate = 0.05
[[stage.finetune]]
parts = ["denoiser", "clip_l"]
learning_rate = 1e-3
"""


def test_a_step_of_loras_and_fine_tunes_matches_the_formula(tmp_path, monkeypatch):
    """Embeddings in both encoders, a LoRA on one, the other and the UNet tuned: every gradient, and every first
    move.
    """
    recipe = load_recipe(make_project(tmp_path, "sdxl", train=THINGS), ["train.steps=1", "train.clip_norm=0"])
    one_step, seen = loop.one_step, []

    def compared(training, clock):
        active = training.injection.activate(training.dataset.at(0).captions, train=True)
        plain_loss(training).backward()
        embeddings = torch.cat([rows.leaf.grad.flatten() for rows in active.values()]).norm()
        weights = {trainable.name: trainable.parameters for trainable in training.trainables.weights}
        gradients, before = {}, {}
        for name, parameters in weights.items():
            gradients[name] = {key: value.grad for key, value in parameters.items() if value.grad is not None}
            before[name] = {key: value.detach().clone() for key, value in parameters.items()}
            for parameter in parameters.values():
                parameter.grad = None
        row = one_step(training, clock)
        assert row["gradient_norms"]["embeddings"] == pytest.approx(float(embeddings), rel=1e-5)
        for name, found in gradients.items():
            norm = torch.cat([gradient.flatten() for gradient in found.values()]).norm()
            assert row["gradient_norms"][name] == pytest.approx(float(norm), rel=1e-5)
            rate = row["learning_rate"][name]
            for key, gradient in found.items():
                start = before[name][key]  # AdamW's first step, and its decay of 0.01
                expected = start - rate * 0.01 * start - rate * gradient / (gradient.abs() + 1e-8)
                torch.testing.assert_close(weights[name][key].detach(), expected, rtol=1e-4, atol=1e-3 * rate)
            for key in weights[name].keys() - found.keys():  # layers behind the one whose states are used
                assert torch.equal(weights[name][key], before[name][key])
            seen.append(name)
        return row

    monkeypatch.setattr(loop, "one_step", compared)
    run_recipe(recipe, out=tmp_path / "run", progress=lambda text: None, bar=False)
    assert seen == ["finetune.denoiser", "finetune.clip_l", "lora.clip_g"]


def test_accumulated_micro_batches_average_their_gradients(tmp_path, monkeypatch):
    recipe = load_recipe(
        make_project(tmp_path), ["train.steps=1", "train.gradient_accumulation=3", "train.batch_size=1"]
    )
    norms, one_step = [], loop.one_step

    def compared(training, clock):
        total = 0
        for number in range(3):
            active = training.injection.activate(training.dataset.at(number).captions, train=True)["clip_l"]
            batch = training.dataset.at(number)
            (loop.batch_loss(training, batch, number, grad_text=True) / 3).backward()
            total = total + active.leaf.grad  # each is already a third: what is left to compare is the sum
        row = one_step(training, clock)
        norms.extend([float(total.norm()), row["gradient_norm"]])
        return row

    monkeypatch.setattr(loop, "one_step", compared)
    run_recipe(recipe, out=tmp_path / "run", progress=lambda text: None, bar=False)
    assert norms[0] == pytest.approx(norms[1], rel=1e-5)
