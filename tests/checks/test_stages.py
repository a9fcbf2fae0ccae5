"""Checks of a train stage against the model, without loading it."""

import pytest
from projects import make_project

from pivotune.pipeline.checks.recipe import check_recipe

LORA = "lora = { rank = 2, learning_rate = 0.01 }"


@pytest.mark.parametrize(
    ("model", "train", "warned"),
    [
        ("wan-2.2", LORA, True), ("wan-2.2", f"{LORA}\ntimesteps = {{ low = 875 }}", False), ("wan-2.2", "", False),
        ("wan", LORA, False),
    ],
)  # fmt: skip
def test_steps_that_do_not_train_the_lora_of_two_denoisers(tmp_path, model, train, warned):
    recipe = make_project(tmp_path, model, train=f"resolution = 32\n{train}")
    found = [one.shown("") for one in check_recipe(recipe).problems]
    assert any("second denoiser draws below timestep 875" in one for one in found) == warned
