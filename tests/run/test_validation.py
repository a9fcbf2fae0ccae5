"""Held-out images: which ones, their loss with fixed noise, stopping by it, and the export of the best state."""

from __future__ import annotations

import json
import math
import re
import signal
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from projects import make_project, run_project, stopped_at
from recipe_text import noise
from run.killing import assert_same, made_files
from safetensors.torch import load_file

from pivotune.pipeline.checks.plan import make_plan
from pivotune.pipeline.checks.plan_text import plan_text
from pivotune.pipeline.checks.recipe import check_recipe
from pivotune.pipeline.cli.main import pivotune
from pivotune.pipeline.data.dataset import Dataset
from pivotune.pipeline.data.examples import read_examples
from pivotune.pipeline.data.holdout import held_out
from pivotune.pipeline.errors import StageError
from pivotune.pipeline.models.tokenizers import load_tokenizers
from pivotune.pipeline.recipe.load import load_recipe, recipe_as_json, recipe_from_json
from pivotune.pipeline.recipe.model import Recipe
from pivotune.pipeline.records import json_safe
from pivotune.pipeline.run.consistency import require_one_process
from pivotune.pipeline.run.replay import replay
from pivotune.pipeline.run.signals import Stopped
from pivotune.pipeline.stages import STAGES
from pivotune.pipeline.train import validation
from pivotune.pipeline.train.setup import Training

SHARE = "[validation]\nevery = '2 steps'\nshare = 0.3\n"
BEST = 'from = "best"'
FREQUENT = "[checkpoint]\nevery = '1 steps'\n"


def recipe_of(tmp_path: Path, *changes: str, more: str = SHARE, **parts: str) -> Recipe:
    return load_recipe(make_project(tmp_path, more=more, **parts), [*changes, "samples.prompts=[]"])


def rows(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text("utf-8").splitlines()]


def measured(run: Path) -> dict[int, float]:
    return {row["step"]: row["validation"] for row in rows(run) if "validation" in row}


def vectors(run: Path) -> torch.Tensor:
    (own,) = load_file(next((run / "exports").glob("*_embeddings/*.safetensors"))).values()
    return own


def notes(run: Path) -> list[str]:
    return json.loads((run / "manifest.json").read_text("utf-8"))["stages"][2]["notes"]


def scripted(monkeypatch: Any, *losses: float) -> None:
    """Have the validations give these losses in turn, the step's own number of validations counted over resumes."""

    def loss(training: Training, seed: int, draws: int) -> float:
        assert training.validation is not None
        return losses[training.validation.last_step // 2]

    monkeypatch.setattr(validation, "held_out_loss", loss)


def test_the_share_is_drawn_by_the_seed_and_trained_in_no_step(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path)
    read = read_examples(recipe, 16)
    assert (len(read.rows), len(read.held_out)) == (2, 1)
    assert not {one.image for one in read.rows} & {one.image for one in read.held_out}
    captions = [[["a <cat>"]] * 50]
    first = held_out(recipe, captions)
    assert len(first[0]) == 15
    assert first == held_out(recipe, captions)
    assert first != held_out(load_recipe(recipe.path, ["seed=4"]), captions)
    seen = {path for quota in read.quotas for path in quota.examples}
    assert seen == {0, 1}


def test_every_embedding_and_concept_keeps_an_image(tmp_path: Path) -> None:
    more = '[[embedding]]\nplaceholder = "<dog>"\ninitial_text = "blue"\n' + SHARE
    recipe = recipe_of(tmp_path, "validation.share=0.5", more=more)
    assert held_out(recipe, [[["a <cat>"], ["a <dog>"], ["a <dog>"], ["a <dog> of mine"]]])[0] <= {1, 2, 3}
    assert len(held_out(recipe, [[["a <cat>"], ["a <dog>"], ["a <dog>"], ["a <dog> of mine"]]])[0]) == 2
    with pytest.raises(StageError, match="no image can be held out"):
        held_out(recipe, [[["a <cat>"], ["a <dog>"]]])


def test_the_loss_is_that_of_the_images_with_noise_of_seed_image_and_draw(tmp_path: Path, monkeypatch: Any) -> None:
    seen: list[tuple[int, torch.Tensor, torch.Tensor]] = []
    own = validation.held_out_loss

    def looked_at(training: Training, seed: int, draws: int) -> float:
        objective, total = training.objective, []
        sample = objective.sample

        def noisy(latents: torch.Tensor, seed: int, step: int) -> Any:
            made = sample(latents, seed, step)
            seen.append((len(seen), made.timesteps, made.target))
            return made

        losses = objective.losses
        with monkeypatch.context() as patch:
            patch.setattr(objective, "sample", noisy)
            patch.setattr(objective, "losses", lambda *given: (total.append(float(losses(*given))), losses(*given))[1])
            loss = own(training, seed, draws)
        assert loss == pytest.approx(sum(total) / len(total))
        assert len(total) == draws * len(training.dataset.held_out) == 6
        return loss

    monkeypatch.setattr(validation, "held_out_loss", looked_at)
    folder = tmp_path / "held"
    for number in range(2):
        noise(folder / f"{number}.png", seed=9 + number)
        (folder / f"{number}.txt").write_text("a <cat>", "utf-8")
    more = "[validation]\nevery = '1 steps'\ndraws = 3\nconcept = { images = 'held' }\n"
    run = run_project(recipe_of(tmp_path, more=more), tmp_path / "run").folder
    assert list(measured(run)) == [1, 2, 3]
    each = [seen[at : at + 6] for at in range(0, len(seen), 6)]
    assert len({float(time) for _, time, _ in each[0]}) == 6  # another one for each image and draw
    for one, other in pairwise(each):  # the same at every step
        for (_, time, target), (_, again, same) in zip(one, other, strict=True):
            assert torch.equal(time, again)
            assert torch.equal(target, same)
    assert len(set(measured(run).values())) == 3  # the vectors have changed


def test_validation_changes_nothing_of_the_training(tmp_path: Path) -> None:
    folder = tmp_path / "held"
    noise(folder / "0.png", seed=9)
    (folder / "0.txt").write_text("a <cat>", "utf-8")
    train = "lora = { rank = 2, dropout = 0.3 }\nema = 0.5"
    with_it = "[validation]\nevery = '1 steps'\nconcept = { images = 'held' }\n"
    runs = [
        run_project(recipe_of(tmp_path, more=more, train=train), tmp_path / name).folder
        for name, more in (("with", with_it), ("without", ""))
    ]
    kept = [[{**row, "seconds": 0} | {"validation": 0} for row in rows(run)] for run in runs]
    assert kept[0] == kept[1]
    assert torch.equal(*(vectors(run) for run in runs))


def test_it_measures_the_ema_weights(tmp_path: Path, monkeypatch: Any) -> None:
    seen = []
    own = validation.held_out_loss

    def looked_at(training: Training, seed: int, draws: int) -> float:
        assert training.embeddings is not None
        shown = training.injection.rows["clip_l"].values.clone()
        shadow = training.embeddings.states.averages["clip_l"].shadow  # has the trained weights while they are swapped
        seen.append((shown, shadow.clone()))
        return own(training, seed, draws)

    monkeypatch.setattr(validation, "held_out_loss", looked_at)
    run = run_project(recipe_of(tmp_path, train="ema = 0.9"), tmp_path / "run").folder
    assert torch.equal(seen[-1][0], vectors(run))  # the EMA weights are exported
    assert not torch.equal(*seen[-1])


def test_the_stage_stops_and_the_best_state_is_exported(tmp_path: Path, monkeypatch: Any) -> None:
    scripted(monkeypatch, 0.5, 0.4, 0.45, 0.4, math.nan, 0.1)
    stop = "stop_when = { validation = 'no better for 3' }"
    lines: list[str] = []
    changes = ["train.steps=40"]
    run = run_project(recipe_of(tmp_path, *changes, train=stop, export=BEST), tmp_path / "run", progress=lines.append)
    found = measured(run.folder)
    assert list(found) == [2, 4, 6, 8, 10]  # 4 was the best; 6, 8 and 10 were no better
    assert found[10] is None
    assert len(rows(run.folder)) == 10
    assert "stopping after step 10 of 40: no better validation loss since step 4 (stop_when)" in lines
    assert notes(run.folder)[-1] == (
        "validation: best loss 0.4 after step 4; stopped after step 10, as it was no better for 3; exported from the "
        "best state"
    )
    four = run_project(load_recipe(tmp_path / "recipe.toml", ["train.steps=4", "samples.prompts=[]"]), tmp_path / "4")
    assert torch.equal(vectors(run.folder), vectors(four.folder))
    last = load_recipe(tmp_path / "recipe.toml", [*changes, "export.from=last", "samples.prompts=[]"])
    assert not torch.equal(vectors(run.folder), vectors(run_project(last, tmp_path / "last").folder))


WEIGHTS = {
    "lora": "lora = { rank = 2, learning_rate = 1e-2 }\nema = 0.5",
    "finetune": "finetune = { learning_rate = 1e-3, layers = 'attention' }",
}


@pytest.mark.parametrize("kind", WEIGHTS)
def test_the_best_state_has_the_weights_too(tmp_path: Path, kind: str, monkeypatch: Any) -> None:
    scripted(monkeypatch, 0.4, 0.5, 0.6)
    recipe = recipe_of(tmp_path, "train.steps=6", train=WEIGHTS[kind], export=BEST)
    best = run_project(recipe, tmp_path / "best").folder
    two = load_recipe(recipe.path, ["train.steps=2", "samples.prompts=[]"])
    files = [made_files(run) for run in (best, run_project(two, tmp_path / "two").folder)]
    weights = [{name: data for name, data in one.items() if name.endswith(".safetensors")} for one in files]
    names = [name for name in weights[0] if name.startswith("exports/")]
    assert len(names) > 2
    for name in names:
        assert weights[0][name] == weights[1][name], name


@pytest.mark.parametrize("at", [3, 5, 9])
def test_a_resumed_run_stops_at_the_same_step_with_the_same_bytes(tmp_path: Path, monkeypatch: Any, at: int) -> None:
    scripted(monkeypatch, 0.5, 0.4, 0.45, 0.41, 0.1, 0.2)
    parts = {"train": "stop_when = { validation = 'no better for 2' }\nema = 0.9", "export": BEST}
    recipe = recipe_of(tmp_path, "train.steps=12", more=SHARE + FREQUENT, **parts)
    whole = run_project(recipe, tmp_path / "whole").folder
    assert list(measured(whole)) == [2, 4, 6, 8]
    resumed = tmp_path / "resumed"
    if at < 9:
        with monkeypatch.context() as patch:
            stopped_at(patch, at, signal.SIGTERM)
            with pytest.raises(Stopped):
                run_project(recipe, resumed)
    else:  # after the last step that was trained
        with monkeypatch.context() as patch:
            patch.setitem(STAGES, "export", _killed)
            with pytest.raises(RuntimeError, match="killed"):
                run_project(recipe, resumed)
    run_project(recipe, resumed)
    assert_same(resumed, whole)
    assert notes(resumed) == notes(whole)


def _killed(*_: Any) -> Any:
    raise RuntimeError("killed")


def test_a_replay_gives_the_same_bytes(tmp_path: Path) -> None:
    stop = "stop_when = { validation = 'no better for 1' }"
    changes = ["train.steps=20", "train.learning_rate=5", "validation.every='1 steps'"]
    run = run_project(recipe_of(tmp_path, *changes, train=stop, export=BEST), tmp_path / "run").folder
    assert 1 < len(rows(run)) < 20  # steps so large make it worse soon
    replay(run, STAGES, out=tmp_path / "again", progress=lambda text: None, bar=False)
    assert measured(tmp_path / "again") == measured(run)


def test_trackers_and_the_report_have_the_loss(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train = "watch = { trackers = ['tensorboard'] }"
    run = run_project(recipe_of(tmp_path, "train.steps=4", train=train), tmp_path / "run").folder
    events = EventAccumulator(str(next((run / "tracking").rglob("events*")).parent)).Reload()
    logged = {one.step: one.value for one in events.Scalars("validation")}
    assert logged == pytest.approx(measured(run))
    page = (run / "report.html").read_text("utf-8")
    assert "Validation loss" in page
    best = min(measured(run).items(), key=lambda pair: pair[1])
    assert f"Best: {best[1]:.4g} at step {best[0]}." in page


@pytest.mark.parametrize(
    ("more", "parts", "message"),
    [
        ("[validation]\nevery = '2 steps'\n", {}, "validation: give either share, or concept"),
        (SHARE.replace("2 steps", "5 minutes"), {}, "would depend on the speed of the machine"),
        (SHARE.replace("2 steps", "0 steps"), {}, "validation.every: 0 never happens"),
        (SHARE.replace("share = 0.3", "concept = { images = 'images' }"), {}, "these images are trained"),
        (SHARE.replace("share = 0.3", "concept = { images = 'none' }"), {}, "validation.concept.images: "),
        ("", {"train": "stop_when = { validation = 'no better for 2' }"}, "stop_when needs [validation]"),
        ("", {"export": BEST}, "from = 'best' needs [validation]"),
        (SHARE, {"train": "stop_when = { validation = 'worse for 2' }"}, 'is not "no better for 5"'),
        ('[[embedding]]\nplaceholder = "<d>"\n' + SHARE, {"captions": "<cat> <d>"}, ""),
    ],
)
def test_check_names_what_does_not_fit(tmp_path: Path, more: str, parts: dict[str, str], message: str) -> None:
    result = CliRunner().invoke(pivotune, ["check", str(make_project(tmp_path, more=more, **parts))])
    assert message in result.output
    assert result.exit_code == (1 if message else 0)


def test_the_recipe_comes_back_from_the_manifest(tmp_path: Path) -> None:
    more = "[validation]\nevery = '10 %'\nconcept = { images = 'images', flip = true }\n"
    recipe = recipe_of(tmp_path, more=more, train="stop_when = { validation = 'no better for 7' }", export=BEST)
    again = recipe_from_json(json.loads(json.dumps(json_safe(recipe_as_json(recipe)))), recipe.path)
    assert again == recipe


def test_several_processes_are_refused(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path)
    require_one_process(recipe, 1)
    with pytest.raises(StageError, match="not supported with 2 processes"):
        require_one_process(recipe, 2)


def test_captions_of_held_out_images_are_read_as_in_training_and_always_the_same(
    tmp_path: Path, monkeypatch: Any
) -> None:
    concept = (
        '[[concept]]\nimages = "held"\nwildcards = true\nkeep_separator = "|||"\nshuffle_tags = true\ntag_dropout = 0.5'
    )
    own = concept.replace("[[concept]]", "[validation]\nevery = '1 steps'\n[validation.concept]")
    for number in range(2):
        noise(tmp_path / "held" / f"{number}.png", seed=9 + number)
        (tmp_path / "held" / f"{number}.txt").write_text("<cat> ||| {red|blue|green|white} ring, a, b, c, d", "utf-8")
    found: list[tuple[str, ...]] = []
    image = Dataset.held_out_image

    def spy(self: Dataset, index: int) -> Any:
        batch = image(self, index)
        found.append(batch.captions)
        return batch

    monkeypatch.setattr(Dataset, "held_out_image", spy)
    run_project(recipe_of(tmp_path, more=own), tmp_path / "run")
    assert len(set(found)) <= 2 < len(found)
    for (caption,) in found:
        assert re.fullmatch(r"<cat>,? (red|blue|green|white) ring, a, b, c, d", caption), caption


def own_images(folder: Path, caption: str, mask: int | None = None) -> str:
    """Two images for validation alone; returns the tables of the recipe."""
    for number in range(2):
        noise(folder / "own" / f"{number}.png", 16, 16, seed=20 + number)
        (folder / "own" / f"{number}.txt").write_text(caption, "utf-8")
        if mask is not None:
            Image.new("L", (16, 16), mask).save(folder / "own" / f"{number}-mask.png")
    return "[validation]\nevery = '1 steps'\nconcept = { images = 'own' }"


@pytest.mark.parametrize(
    ("caption", "mask", "message"),
    [
        ("a photo of <cat>", None, ""), ("a photo of <cat>", 255, ""),
        ("a photo", None, "validation.concept.captions: warning: no caption contains a placeholder"),
        ("a photo of <cat>", 0, "validation.concept.masks: the masks of all 2 images are black"),
    ],
)  # fmt: skip
def test_check_looks_at_what_the_images_for_validation_say(
    tmp_path: Path, caption: str, mask: int | None, message: str
) -> None:
    own = own_images(tmp_path, caption, mask)
    path = make_project(tmp_path, more=own, train="objective = { unmasked_weight = 0.0 }")
    found = [one.shown("") for one in check_recipe(path).problems if one.key.startswith("validation")]
    assert [message in one for one in found] == [True] * bool(message), found


def test_a_folder_that_is_missing_is_one_problem(tmp_path: Path) -> None:
    path = make_project(tmp_path, more=SHARE)
    assert not [one for one in check_recipe(path, ["concept.images=nowhere"]).problems if "share" in one.key]


def test_plan_and_manifest_count_what_is_held_out(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path)
    plan = plan_text(make_plan(recipe, load_tokenizers(recipe.model)))
    assert "validation every 2 steps with 1 image held out" in plan
    run_project(recipe, tmp_path / "run")
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text("utf-8"))
    data, [embedding] = manifest["data"], manifest["embeddings"]
    assert (data["images"], data["held_out"], data["concepts"], len(embedding["images"])) == (2, 1, [2], 2)
    assert sum(name.endswith(".png") for name in data["files"]) == 3
