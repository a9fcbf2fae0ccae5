"""What a launcher may not ask of DeepSpeed, and what of a recipe does not go with spread fine-tunes."""

from __future__ import annotations

import json

import pytest
from projects import make_project
from run.zero import ZERO, needs_deepspeed

from pivotune.pipeline import launch_zero
from pivotune.pipeline.errors import StageError
from pivotune.pipeline.launch import begin_processes
from pivotune.pipeline.recipe.load import load_recipe
from pivotune.pipeline.run.spread import hold_spread

TUNED = "finetune = { parts = ['denoiser'] }\n"


def asked(monkeypatch, **environment):
    for variable, value in (ZERO | environment).items():
        monkeypatch.setenv(variable, value)


@needs_deepspeed
@pytest.mark.parametrize(
    ("environment", "said"),
    [
        (
            {"ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"},
            "ZeRO 3: say --zero_stage 2 .or 1.; to spread the weights too, .*FSDP",
        ),
        ({"ACCELERATE_DEEPSPEED_ZERO_STAGE": "0"}, "ZeRO 0: .* launch with --multi_gpu where nothing is to be spread"),
        ({"ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": "cpu"}, "with offload_optimizer, which is not supported"),
        (
            {"ACCELERATE_GRADIENT_CLIPPING": "0.5"},
            "gradient_clipping: leave it out, for the recipe's clip_norm says it",
        ),
        ({"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4"}, "the recipe's gradient_accumulation says it"),
        ({"ACCELERATE_MIXED_PRECISION": "bf16"}, "say --mixed_precision no, for the recipe's model.dtype says it"),
        ({"ACCELERATE_DYNAMO_BACKEND": "INDUCTOR"}, "say --dynamo_backend no"),
    ],
)
def test_settings_of_deepspeed_that_are_not_used_are_refused(monkeypatch, environment, said):
    asked(monkeypatch, **environment)
    with pytest.raises(StageError, match=said):
        begin_processes("cpu")


@needs_deepspeed
@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"optimizer": {"type": "AdamW", "params": {"lr": 1e-4}}}, "its optimizer: leave it out"),
        ({"bf16": {"enabled": True}}, "its bf16: leave it out, for the recipe's model.dtype says it"),
        ({"zero_optimization": {"stage": 3}}, "ZeRO 3"),
        ({"zero_optimization": {"stage": 2, "cpu_offload": True}}, "cpu_offload, which is not supported"),
        ({"train_batch_size": 8}, "its train_batch_size: leave it out, for the recipe's batch_size says it"),
        ({"torch_autocast": {"enabled": True}}, "its torch_autocast: leave it out, it is not supported"),
        ({"gradient_predivide_factor": 2.0}, "its gradient_predivide_factor: leave it out"),
        ({"zero_optimization": True}, "the launcher's settings of DeepSpeed: "),
    ],
)
def test_a_configuration_file_is_held_to_the_same(tmp_path, monkeypatch, more, said):
    plain = {
        "zero_optimization": {"stage": 1}, "gradient_clipping": "auto", "fp16": {"enabled": "auto"},
        "train_batch_size": "auto", "gradient_predivide_factor": 1.0, "wall_clock_breakdown": True,
    }  # fmt: skip
    file = tmp_path / "zero.json"
    asked(monkeypatch, ACCELERATE_DEEPSPEED_CONFIG_FILE=str(file))
    file.write_text(json.dumps(plain), "utf-8")
    assert begin_processes("cpu").count == 1
    file.write_text(json.dumps(plain | more), "utf-8")
    with pytest.raises(StageError, match=said):
        begin_processes("cpu")


@needs_deepspeed
def test_a_deepspeed_that_cannot_add_gradients_up_is_refused(monkeypatch):
    asked(monkeypatch)
    monkeypatch.setattr(launch_zero, "OLDEST", "99.0")
    with pytest.raises(StageError, match=r"this one is too old: pip install 'deepspeed>=99\.0'"):
        begin_processes("cpu")


def test_without_deepspeed_it_is_said_what_to_install(monkeypatch):
    asked(monkeypatch)
    monkeypatch.setattr(launch_zero, "find_spec", lambda name: None)
    with pytest.raises(StageError, match=r"not installed: pip install 'pivotune\[deepspeed\]'"):
        begin_processes("cpu")


@pytest.mark.parametrize("sharding", ["FSDP", "DeepSpeed"])
@pytest.mark.parametrize(
    ("train", "model", "said"),
    [
        (
            "finetune = { parts = ['denoiser'], optimizer = { kind = 'came' } }",
            "",
            "the optimizer came does not go with",
        ),
        (TUNED + "compile = true", "", "compile = true does not go with"),
        (TUNED + "locality = { prompts = ['a'] }", "", "locality does not go with"),
        (TUNED, 'dtype = "float16"', "take 'bfloat16', or launch with FSDP"),
    ],
)
def test_what_does_not_go_with_a_spread_fine_tune_is_refused(tmp_path, train, model, said, sharding):
    recipe = load_recipe(make_project(tmp_path, train=train, model=model))
    hold_spread(recipe, "")
    if model and sharding == "FSDP":
        hold_spread(recipe, sharding)
    else:
        with pytest.raises(StageError, match=f"stage 3 .train.: .*{said}"):
            hold_spread(recipe, sharding)


def test_what_no_fine_tune_asks_goes_with_all(tmp_path):
    recipe = load_recipe(make_project(tmp_path, train="optimizer = { kind = 'prodigy' }\ncompile = true"))
    hold_spread(recipe, "DeepSpeed")
