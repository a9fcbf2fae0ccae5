"""Train stages that are as long as so many epochs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from projects import make_project, run_project, stopped_at

from pivotune.pipeline.checks.plan import make_plan
from pivotune.pipeline.checks.recipe import check_recipe, checked_recipe
from pivotune.pipeline.models.tokenizers import load_tokenizers
from pivotune.pipeline.run.signals import Stopped


def project(folder: Path, steps: str, train: str = "") -> Path:
    """A recipe of three images in batches of two: an epoch is two batches."""
    path = make_project(folder, train=train)
    text = path.read_text("utf-8")
    assert "\nsteps = 3\n" in text
    path.write_text(text.replace("\nsteps = 3\n", f"\nsteps = {steps}\n"), "utf-8")
    return path


@pytest.mark.parametrize(
    ("steps", "train", "count"),
    [
        ('"3 epochs"', "", 6),
        ('"1 epoch"', "", 2),
        ('"0.2 epochs"', "", 1),
        ('"2.5 epochs"', "gradient_accumulation = 2", 3),
        ('"2.5 epochs"', "gradient_accumulation = 3", 2),
        ("7", "", 7),
    ],
)
def test_epochs_become_steps_by_the_batches_of_an_epoch_rounded_up(steps, train, count, tmp_path):
    recipe, problems = checked_recipe(project(tmp_path, steps, train))
    planned = make_plan(recipe, load_tokenizers(recipe.model)).stages[2]
    assert (recipe.stages[2].options.steps, planned.steps, problems) == (count, count, [])


def test_repeats_and_held_out_images_count(tmp_path):
    path = project(tmp_path, '"3 epochs"')
    path.write_text(path.read_text("utf-8").replace("[[concept]]", "[[concept]]\nrepeats = 4"), "utf-8")
    assert checked_recipe(path)[0].stages[2].options.steps == 18
    held_out = ["validation.share=0.34", 'validation.every="1 epochs"']
    assert checked_recipe(path, held_out)[0].stages[2].options.steps == 12


@pytest.mark.parametrize("steps", ['"0 epochs"', '"epochs"', '"2 hours"', '"-1 epochs"', '"2"', '"0.0 epochs"'])
def test_other_texts_are_refused(steps, tmp_path):
    [problem] = check_recipe(project(tmp_path, steps)).problems
    assert problem.key == "stage.3.steps"
    assert "epochs" in problem.text


def test_class_images_that_a_run_generates_are_refused(tmp_path):
    path = project(tmp_path, '"3 epochs"')
    concept = '[[concept]]\nimages = "class"\nprior = true\ngenerate = { prompts = ["a dog"], count = 2 }\n'
    path.write_text(path.read_text("utf-8").replace("[[concept]]", f"{concept}\n[[concept]]", 1), "utf-8")
    texts = [problem.text for problem in check_recipe(path).problems if problem.severity == "error"]
    assert ["epochs are not supported with class images" in text for text in texts] == [True]


def test_a_recipe_with_bad_images_says_only_that(tmp_path):
    path = project(tmp_path, '"3 epochs"', 'save = { every = "2 steps" }')
    (tmp_path / "images" / "1.png").write_bytes(b"bad")
    problems = check_recipe(path).problems
    assert len(problems) == 1
    assert "1.png" in problems[0].text


def test_a_run_records_steps_and_resumes(tmp_path, monkeypatch):
    path, out = project(tmp_path, '"2 epochs"'), tmp_path / "out"
    with monkeypatch.context() as patch:
        stopped_at(patch, 2, 15)
        with pytest.raises(Stopped):
            run_project(path, out)
    run_project(path, out)
    manifest = json.loads((out / "manifest.json").read_text("utf-8"))
    assert (manifest["status"], manifest["recipe"]["stage"][2]["steps"]) == ("finished", 4)
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text("utf-8").splitlines()]
    assert max(line["step"] for line in lines if "step" in line) == 4
