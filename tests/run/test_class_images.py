"""Prior preservation from the recipe on: class images drawn, counted, kept, and what they count in the loss."""

import pytest
from click.testing import CliRunner
from projects import make_project, run_project

from pivotune.pipeline.cli.main import pivotune
from pivotune.pipeline.recipe.load import load_recipe
from pivotune.pipeline.train import loop

GENERATE = (
    '[[concept]]\nimages = "class"\nprior = true\ngenerate = { prompts = ["a ring", "a star"], count = 3, steps = 2 }'
)


def test_class_images_are_drawn_counted_and_reused(tmp_path):
    path = make_project(tmp_path, more=GENERATE)
    assert CliRunner().invoke(pivotune, ["check", str(path)]).exit_code == 0
    folder = tmp_path / "class"
    folder.mkdir()
    (tmp_path / "images" / "0.png").rename(folder / "mine.png")
    (folder / "mine.txt").write_text("a ring of mine")
    run_project(path, tmp_path / "one")
    found = {file.name: file.read_bytes() for file in folder.iterdir()}
    names = ["class-00000.png", "class-00000.txt", "class-00001.png", "class-00001.txt", "mine.png", "mine.txt"]
    assert sorted(found) == names  # one was there: two were missing
    assert found["class-00000.txt"] == b"a ring\n"
    assert found["class-00001.txt"] == b"a star\n"
    (folder / "class-00000.png").unlink()
    run_project(path, tmp_path / "two")
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == found  # the same image again, no other


def test_their_loss_is_weighted_as_in_dreambooth(tmp_path, monkeypatch):
    options = ["train.prior_weight=0.25", "train.batch_size=6", "train.steps=1"]
    recipe = load_recipe(make_project(tmp_path, more=GENERATE), options)
    mean_loss, seen = loop.mean_loss, []

    def looked_at(losses, weight, prior, prior_weight):
        loss = mean_loss(losses, weight, prior, prior_weight)
        assert prior.tolist().count(True) == 3
        seen.append((float(loss.detach()), float((losses[~prior].mean() + 0.25 * losses[prior].mean()).detach())))
        return loss

    monkeypatch.setattr(loop, "mean_loss", looked_at)
    run_project(recipe, tmp_path / "run")
    assert seen[0][0] == pytest.approx(seen[0][1], rel=1e-6)


def test_check_finds_prompts_for_an_unsuitable_model(tmp_path):
    wrong = GENERATE.replace("prior = true", 'captions = ["a ring"]').replace('"a star"', '"a photo of <cat>"')
    result = CliRunner().invoke(pivotune, ["check", str(make_project(tmp_path, more=wrong))])
    assert result.exit_code == 1
    for text in ("need prior = true", "set captions = ", "does not know '<cat>'"):
        assert text in result.output
