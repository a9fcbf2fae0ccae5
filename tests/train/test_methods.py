"""LoRAs and fine-tunes on any part of the model, beside embeddings or around them: what moves, and what stays."""

import json
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from projects import make_project, run_project

from pivotune.pipeline.errors import StageError
from pivotune.pipeline.models.load import load_model, part_modules
from pivotune.pipeline.recipe.intervals import Clock
from pivotune.pipeline.recipe.load import load_recipe
from pivotune.pipeline.recipe.options import OptimizerOptions, TrainOptions
from pivotune.pipeline.recipe.typed import options_of
from pivotune.pipeline.run.context import RunState
from pivotune.pipeline.train import loop
from pivotune.pipeline.train.weights import WeightSettings, WeightTrainer

WHOLE = """
[[stage.lora]]
parts = ["denoiser", "clip_g"]
rank = 2
learning_rate = 0.05
[[stage.finetune]]
parts = ["clip_l"]
learning_rate = 1e-3
"""


def watched(monkeypatch, run_it):
    """The run's model as it ended (before embeddings and LoRAs are taken out), by parameter name."""
    seen = {}
    eject = RunState.eject

    def look(state, model):
        if "end" not in seen:
            seen["model"], seen["finetuned"] = model, state.trained.finetuned
            seen["end"] = parameters(model)
        eject(state, model)

    monkeypatch.setattr(RunState, "eject", look)
    seen["result"] = run_it()
    monkeypatch.setattr(RunState, "eject", eject)
    return seen


def parameters(model):
    return {
        f"{part}.{name}": value.detach().clone()
        for part, module in part_modules(model).items()
        for name, value in module.named_parameters()
    }


def base_model_of(folder):
    return parameters(load_model(load_recipe(folder / "recipe.toml").model, torch.device("cpu")))


def changed(before, after):
    """Names of weights of the model that moved; LoRAs' own and the wrapping of embeddings are looked through."""
    plain = {name.replace("base_layer.", "").replace("token_embedding.base.", "token_embedding."): value
             for name, value in after.items() if ".pivotune." not in name}  # fmt: skip
    assert plain.keys() == before.keys()
    return {name for name, value in plain.items() if not torch.equal(value, before[name])}


def test_embeddings_a_lora_and_a_fine_tune_on_three_parts_in_one_stage(tmp_path, monkeypatch):
    recipe = make_project(tmp_path, "sdxl", train=WHOLE)
    seen = watched(monkeypatch, lambda: run_project(recipe, tmp_path / "run"))
    changed_names = changed(base_model_of(tmp_path), seen["end"])
    assert changed_names
    assert {name.split(".")[0] for name in changed_names} == {"clip_l"}
    assert not any("token_embedding" in name for name in changed_names)
    ups = [value for name, value in seen["end"].items() if "lora_B" in name]
    assert ups
    assert all(bool(up.any()) for up in ups)  # every LoRA layer of both parts has left its start, zero
    assert seen["finetuned"] == {"text_encoder"}
    assert not any(value.requires_grad for module in part_modules(seen["model"]).values()
                   for value in module.parameters())  # fmt: skip


@pytest.mark.parametrize(
    ("layers", "expected"),
    [('"cross-attention"', ".attn2."), ('"attention"', ".attn"), ('["mid_block."]', ".mid_block.")],
)
def test_layers_select_the_finetuned_weights(tmp_path, monkeypatch, layers, expected):
    recipe = make_project(tmp_path, train=f"finetune = {{ layers = {layers}, learning_rate = 1e-3 }}")
    seen = watched(monkeypatch, lambda: run_project(recipe, tmp_path / "run"))
    changed_names = changed(base_model_of(tmp_path), seen["end"])
    assert changed_names
    assert all(expected in f".{name}" for name in changed_names)


def test_layers_without_a_match_are_an_error(tmp_path):
    recipe = make_project(tmp_path, train='finetune = { layers = ["nothing"] }')
    with pytest.raises(StageError, match="matches no weight of denoiser; names start with conv_in"):
        run_project(recipe, tmp_path / "run")


def test_finetuning_a_part_with_a_lora_is_an_error(tmp_path):
    second = '[[stage]]\nkind = "train"\nsteps = 1\nfinetune = {}'
    recipe = make_project(tmp_path, train="lora = { rank = 2 }", stages=second)
    with pytest.raises(StageError, match="denoiser has a LoRA and cannot be fine-tuned with it"):
        run_project(recipe, tmp_path / "run")


def test_pivotal_tuning_embeddings_then_the_model(tmp_path, monkeypatch):
    """Pivotal tuning: in the second stage the embeddings are bit for bit what the first one found."""
    second = '[[stage]]\nkind = "train"\nsteps = 2\nembeddings = false\nfinetune = { learning_rate = 1e-3 }'
    recipe = make_project(tmp_path, stages=second)
    one_step, rows = loop.one_step, []

    def recorded(training, clock):
        row = one_step(training, clock)
        weights = torch.cat([value.flatten() for value in training.model.denoiser.parameters()])
        rows.append((training.injection.rows["clip_l"].values.clone(), weights))
        return row

    monkeypatch.setattr(loop, "one_step", recorded)
    run_project(recipe, tmp_path / "run")
    embeddings, weights = zip(*rows, strict=True)
    assert not torch.equal(embeddings[0], embeddings[2])
    assert torch.equal(embeddings[2], embeddings[3])
    assert torch.equal(embeddings[2], embeddings[4])
    assert torch.equal(weights[0], weights[2])
    assert not torch.equal(weights[2], weights[4])


def test_half_precision_weights_accumulate_small_steps():
    """Steps of 1e-5 are far below what bfloat16 can add to 0.1; two hundred of them are not."""
    weight = torch.nn.Parameter(torch.full((8,), 0.1, dtype=torch.bfloat16))
    options = options_of(OptimizerOptions, kind="adamw")
    trainer = WeightTrainer("finetune.denoiser", {"weight": weight}, WeightSettings(options, 1e-5), text=False)
    start = weight.detach().clone()
    assert torch.equal(start + 1e-5, start)
    for step in range(200):
        weight.grad = torch.ones_like(weight)
        trainer.step(trainer.gradient_norm(1.0), Clock(step, 200, 10.0, 0.0))
    assert weight.dtype == torch.bfloat16
    torch.testing.assert_close(weight.float(), torch.full((8,), 0.1 - 200e-5), rtol=0, atol=4e-4)


def test_lora_dropout_depends_on_seed_and_step_and_is_off_in_sampling(tmp_path, monkeypatch):
    ends = []
    one_step, on = loop.one_step, []

    def recorded(training, clock):
        dropouts = [one for one in training.model.denoiser.modules() if isinstance(one, torch.nn.Dropout) and one.p]
        on.append({one.training for one in dropouts})
        return one_step(training, clock)

    monkeypatch.setattr(loop, "one_step", recorded)
    for name, dropout in (("one", 0.5), ("two", 0.5), ("none", 0.0)):
        (tmp_path / name).mkdir()
        recipe = make_project(
            tmp_path / name, train=f"lora = {{ rank = 2, dropout = {dropout}, learning_rate = 0.05 }}"
        )
        seen = watched(monkeypatch, lambda recipe=recipe, name=name: run_project(recipe, tmp_path / name / "run"))
        ends.append(seen["end"])
        dropouts = [one for one in seen["model"].denoiser.modules() if isinstance(one, torch.nn.Dropout) and one.p]
        assert not any(one.training for one in dropouts)
    assert on == [{True}] * 6 + [set()] * 3
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())
    assert any(not torch.equal(value, ends[2][name]) for name, value in ends[0].items())


def test_gradient_checkpointing_does_not_change_results(tmp_path, monkeypatch):
    ends = []
    for name, extra in (("plain", ""), ("less", "gradient_checkpointing = true\n")):
        (tmp_path / name).mkdir()
        recipe = make_project(tmp_path / name, "sdxl", train=extra + WHOLE)
        seen = watched(monkeypatch, lambda recipe=recipe, name=name: run_project(recipe, tmp_path / name / "run"))
        ends.append(seen["end"])
    for name, value in ends[0].items():
        torch.testing.assert_close(value, ends[1][name], rtol=1e-4, atol=1e-5)


def test_prodigy_finds_its_learning_rates_in_bfloat16(tmp_path):
    """The optimizers of the shipped recipe, on a trained model: embedding and LoRA each find their
    own.
    """
    [(_, options)] = load_recipe("sdxl-prodigy").stages_with(TrainOptions)
    embedding, lora = options.optimizer, options.lora[0].optimizer
    assert embedding.settings["growth_rate"] == lora.settings["growth_rate"] == 2
    changes = [
        "model.dtype=bfloat16", "train.learning_rate=1", "train.steps=12", "train.warmup_steps=0", "device=cpu",
        "train.batch_size=1", "train.schedule=constant", "samples.prompts=[]",
    ]  # fmt: skip
    recipe = load_recipe("quickstart", [*changes, "train.lora={ rank = 4, learning_rate = 1 }"])
    [(index, train)] = recipe.stages_with(TrainOptions)
    train = replace(train, optimizer=embedding, lora=(replace(train.lora[0], optimizer=lora),))
    stages = [*recipe.stages[:index], replace(recipe.stages[index], options=train), *recipe.stages[index + 1 :]]
    recipe = replace(recipe, stages=tuple(stages))
    folder = run_project(recipe, tmp_path / "run").folder
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text("utf-8").splitlines()]
    for name, first in (("embeddings", embedding.settings["d0"]), ("lora.denoiser", lora.settings["d0"])):
        sizes = [row["learning_rate"][name] for row in rows]
        assert max(sizes) > 10 * first, (name, sizes)
        assert all(after >= before for before, after in pairwise(sizes)), (name, sizes)
        late = [size for size in sizes if size > first]  # the first guess that is better is taken as it is
        assert all(after <= 2.001 * before for before, after in pairwise(late)), (name, sizes)


def test_metrics_have_norm_distance_and_nearest_token_of_every_vector(tmp_path):
    folder = run_project(make_project(tmp_path), tmp_path / "run").folder
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text("utf-8").splitlines()]
    first = rows[0]["embeddings"]["<cat>"]["clip_l"]
    assert {len(values) for values in first.values()} == {2}
    assert first["nearest"] == ["red</w>", "ring</w>"]  # after one small step still where it began
    assert all(0 < way < 1 for way in first["distance"])
