"""Mistakes that people make: the message shows the line that is right, or whose configuration it is."""

from __future__ import annotations

import pytest

from pivotune.pipeline.checks.recipe import check_recipe

LINES = [
    ('train.optimizer="adamw8bit"', "expected a table, got 'adamw8bit'; write optimizer = { kind = \"adamw8bit\" }"),
    ("train.lora=16", "expected a table or a list, got 16; write lora = { rank = 16 }"),
    (
        'train.learning_rate="1e-4"',
        "expected a number or a table, got '1e-4'; write it without quotes: learning_rate = 1e-4",
    ),
    ('train.steps="300"', "; write it without quotes: steps = 300"),
    ('model.base="sdxl"', 'for example: base = "stabilityai/stable-diffusion-xl-base-1.0"'),
    ('export.targets=["automatic1111"]', "unknown value 'automatic1111'; write 'a1111'"),
    ('export.targets=["Comfy"]', "unknown value 'Comfy'; write 'comfyui'"),
]


@pytest.mark.parametrize(("change", "text"), LINES)
def test_a_plain_mistake_gets_the_line_that_is_right(change, text):
    errors = [problem.text for problem in check_recipe("quickstart", [change]).problems if problem.severity == "error"]
    assert len(errors) == 1
    assert text in errors[0]


@pytest.mark.parametrize("change", ['train.steps="many"', "train.lora=true", "train.optimizer=3.5"])
def test_other_wrong_types_get_no_senseless_line(change):
    errors = [problem.text for problem in check_recipe("quickstart", [change]).problems if problem.severity == "error"]
    assert errors
    assert all("without quotes" not in error for error in errors)
    assert all("rank = true" not in error for error in errors)


CONFIGS = {
    "OneTrainer": '{\n  "__version": 10,\n  "training_method": "EMBEDDING",\n  "additional_embeddings": []\n}',
    "kohya's scripts": "[general]\nshuffle_caption = true\n[[datasets]]\nresolution = 512\n  [[datasets.subsets]]",
    "kohya's scripts ": 'pretrained_model_name_or_path = "model"\noutput_dir = "out"\nnetwork_dim = 8',
    "kohya's scripts  ": '{"pretrained_model_name_or_path": "model", "LoRA_type": "Standard"}',
    "ai-toolkit": "---\njob: extension\nconfig:\n  name: x\n  process:\n    - type: sd_trainer",
    "diffusers' scripts": "#!/bin/sh\naccelerate launch textual_inversion.py --learnable_property=object",
}


@pytest.mark.parametrize("program", CONFIGS)
def test_a_configuration_of_another_program_is_recognised(tmp_path, program):
    path = tmp_path / "config"
    path.write_text(CONFIGS[program], "utf-8")
    problems = check_recipe(path).problems
    assert len(problems) == 1
    assert f"this is a configuration of {program.strip()}, not a recipe" in problems[0].text
