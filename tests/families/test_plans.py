"""The shipped recipes, planned with a small model of their family."""

import json
from pathlib import Path

import pytest
from projects import BUILD, runnable

from pivotune.converters.families import families
from pivotune.pipeline.checks.plan import make_plan
from pivotune.pipeline.checks.recipe import checked_recipe
from pivotune.pipeline.models.tokenizers import load_tokenizers
from pivotune.pipeline.recipe.document import shipped
from pivotune.pipeline.recipe.load import load_recipe
from pivotune.pipeline.recipe.options import TrainOptions

IMAGES = Path(__file__).parents[1] / "recipe" / "images"
OWN = sorted(name for name in shipped() if load_recipe(name).model.family)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    for family in sorted({load_recipe(name).model.family for name in OWN}):
        BUILD[family]().save_pretrained(folder / family)
    return folder


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=getattr(runnable([load_recipe(name).model.family])[0], "marks", ())) for name in OWN],
)
def test_a_recipe_is_planned(name, models):
    recipe = load_recipe(name)
    captions = json.dumps([f"a photo of {embedding.placeholder}" for embedding in recipe.embeddings])
    overrides = [f"model.base={models / recipe.model.family}"]
    for number, concept in enumerate(recipe.concepts, 1):
        if concept.generate is None:
            overrides += [f"concept.{number}.images={IMAGES}", f"concept.{number}.captions={captions}"]
    recipe, _ = checked_recipe(name, overrides)
    tokenizers = load_tokenizers(recipe.model)
    plan = make_plan(recipe, tokenizers)
    trained = [stage for stage in plan.stages if stage.kind == "train"]
    assert trained
    assert all(stage.steps for stage in trained)
    assert not plan.truncated
    family = families()[recipe.model.family]
    assert plan.limits == {
        one.key: (one.length or 77) - one.special for one in family.encoders if one.key in tokenizers
    }
    assert {key for made in plan.embeddings.values() for key in made} == tokenizers.keys()
    export = plan.stages[-1]
    assert export.kind == "export"
    tuned = any(options.finetune for _, options in recipe.stages_with(TrainOptions))
    assert ("and the fine-tuned model" in export.inputs) == tuned
