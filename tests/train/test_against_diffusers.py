"""The first steps match diffusers' training examples, whose steps are written out here."""

import pytest
import torch
from diffusers import DDPMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline
from diffusers.training_utils import compute_snr
from projects import make_project, run_project
from torch.nn.functional import mse_loss

from pivotune.pipeline.recipe.load import load_recipe
from pivotune.pipeline.train import loop

STEPS, RATE = 3, 1e-2
TOKENS = ["<cat>", "<cat>_1"]


def new_tokens(tokenizer, encoder, initial_text="red ring"):
    """As textual_inversion.py does: one token per vector, the table resized, their rows those of the initial text."""
    start = tokenizer(initial_text, add_special_tokens=False).input_ids
    tokenizer.add_tokens(TOKENS)
    ids = tokenizer.convert_tokens_to_ids(TOKENS)
    encoder.resize_token_embeddings(len(tokenizer))
    with torch.no_grad():
        for position, token in zip(ids, start, strict=True):
            encoder.get_input_embeddings().weight[position] = encoder.get_input_embeddings().weight[token].clone()
    encoder.requires_grad_(False)
    encoder.get_input_embeddings().weight.requires_grad_(True)
    return ids


def embeddings_of(pipe):
    """(tokenizer, encoder) of each text encoder, with the new tokens in them."""
    pairs = [(pipe.tokenizer, pipe.text_encoder)]
    pairs += [(pipe.tokenizer_2, pipe.text_encoder_2)] if hasattr(pipe, "text_encoder_2") else []
    return [(*pair, new_tokens(*pair)) for pair in pairs]


def text_of(pairs, captions):
    """textual_inversion.py, and textual_inversion_sdxl.py where there are two encoders: (states, pooled)."""
    texts = [caption.replace("<cat>", " ".join(TOKENS)) for caption in captions]
    answers = []
    for tokenizer, encoder, _ in pairs:
        ids = tokenizer(texts, padding="max_length", truncation=True, max_length=77, return_tensors="pt").input_ids
        answers.append(encoder(ids, output_hidden_states=True))
    if len(pairs) == 1:
        return answers[0][0], None
    return torch.cat([answer.hidden_states[-2] for answer in answers], dim=-1), answers[1][0]


def loss_of(prediction, noise, latents, timesteps, scheduler, gamma):
    """train_text_to_image.py: the target by the scheduler's prediction, and min-SNR weights."""
    kind = scheduler.config.prediction_type
    target = noise if kind == "epsilon" else scheduler.get_velocity(latents, noise, timesteps)
    if gamma is None:
        return mse_loss(prediction.float(), target.float(), reduction="mean")
    snr = compute_snr(scheduler, timesteps)
    weights = torch.stack([snr, gamma * torch.ones_like(timesteps)], dim=1).min(dim=1)[0]
    weights = weights / (snr if kind == "epsilon" else snr + 1)
    loss = mse_loss(prediction.float(), target.float(), reduction="none")
    return (loss.mean(dim=list(range(1, len(loss.shape)))) * weights).mean()


def script(training, folder, pipeline, gamma):
    """The example script's first steps on the images, noise and timesteps of our run: (losses, its vectors)."""
    pipe = pipeline.from_pretrained(folder)
    scheduler = DDPMScheduler.from_config(pipe.scheduler.config)
    scheduler.register_to_config(prediction_type=training.objective.kind)
    pairs = embeddings_of(pipe)
    pipe.unet.requires_grad_(False)
    tables = [encoder.get_input_embeddings().weight for _, encoder, _ in pairs]
    optimizer = torch.optim.AdamW(tables, lr=RATE, betas=(0.9, 0.999), weight_decay=1e-2, eps=1e-8)
    before, losses = [table.detach().clone() for table in tables], []
    for step in range(STEPS):
        batch = training.dataset.at(step)
        noise, timesteps = training.objective.draw(batch.latents, training.seed, step)
        noisy = scheduler.add_noise(batch.latents, noise, timesteps)
        states, pooled = text_of(pairs, batch.captions)
        added = None if pooled is None else {"text_embeds": pooled, "time_ids": batch.sizes}
        prediction = pipe.unet(noisy, timesteps, encoder_hidden_states=states, added_cond_kwargs=added).sample
        loss = loss_of(prediction, noise, batch.latents, timesteps, scheduler, gamma)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(tables, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():  # the scripts put all other rows back after each step
            for table, old, (_, _, ids) in zip(tables, before, pairs, strict=True):
                keep = torch.ones(len(table), dtype=torch.bool)
                keep[ids] = False
                table[keep] = old[keep]
        losses.append(float(loss.detach()))
    return losses, [table[ids].detach() for table, (_, _, ids) in zip(tables, pairs, strict=True)]


@pytest.mark.parametrize(
    ("family", "kind", "gamma"),
    [("sd1", "epsilon", None), ("sd1", "v_prediction", 5.0), ("sdxl", "epsilon", None), ("sdxl", "epsilon", 5.0)],
)
def test_losses_and_vectors_match_the_example_script(tmp_path, monkeypatch, family, kind, gamma):
    options = [f"train.steps={STEPS}", "train.optimizer.weight_decay=1e-2", f"train.objective.prediction='{kind}'"]
    options += [] if gamma is None else ["train.objective.weighting='min-snr'", f"train.objective.gamma={gamma}"]
    recipe = load_recipe(make_project(tmp_path, family), options)
    one_step, ours, theirs, seen = loop.one_step, [], [], {}
    pipeline = StableDiffusionXLPipeline if family == "sdxl" else StableDiffusionPipeline

    def compared(training, clock):
        if not theirs:
            losses, seen["theirs"] = script(training, tmp_path / "model", pipeline, gamma)
            theirs.extend(losses)
            seen["start"] = [rows.values.clone() for rows in training.injection.rows.values()]
        row = one_step(training, clock)
        ours.append(row["loss"])
        seen["ours"] = [rows.values.clone() for rows in training.injection.rows.values()]
        return row

    monkeypatch.setattr(loop, "one_step", compared)
    run_project(recipe, tmp_path / "run")
    assert ours == pytest.approx(theirs, rel=2e-6)
    assert len(set(ours)) == STEPS
    assert len(seen["ours"]) == (2 if family == "sdxl" else 1)  # one an encoder
    for start, end, there in zip(seen["start"], seen["ours"], seen["theirs"], strict=True):
        assert (end - start).abs().mean(
            dim=1
        ).min() > RATE  # every vector was trained, most values about three times as far
        torch.testing.assert_close(end, there, rtol=0, atol=1e-2 * RATE)
