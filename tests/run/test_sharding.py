"""Which keys of a recipe cannot be used with fine-tunes that FSDP2 shards."""

from __future__ import annotations

import pytest
from projects import make_project

from pivotune.pipeline.errors import StageError
from pivotune.pipeline.recipe.load import load_recipe
from pivotune.pipeline.run.consistency import require_shardable

TUNED = "finetune = { parts = ['denoiser'] }\n"


@pytest.mark.parametrize(
    ("train", "error"),
    [
        (
            "finetune = { parts = ['denoiser'], optimizer = { kind = 'came' } }",
            "the optimizer came cannot be used with FSDP, .*; use adamw or lion",
        ),
        (TUNED + "compile = true", "compile = true cannot be used with"),
        (TUNED + "locality = { prompts = ['a'] }", "locality cannot be used with"),
    ],
)
def test_unsupported_keys_of_a_sharded_fine_tune_are_refused(tmp_path, train, error):
    recipe = load_recipe(make_project(tmp_path, train=train))
    require_shardable(recipe, sharding=False)
    with pytest.raises(StageError, match=f"stage 3 .train.: .*{error}"):
        require_shardable(recipe, sharding=True)


@pytest.mark.parametrize(
    ("train", "model"),
    [("optimizer = { kind = 'prodigy' }\ncompile = true", ""), (TUNED, 'dtype = "float16"')],
)
def test_keys_that_work_with_shards_are_accepted(tmp_path, train, model):
    require_shardable(load_recipe(make_project(tmp_path, train=train, model=model)), sharding=True)
