"""Sample images by the recipe: negative prompt, scheduler, seeds of prompts, and no slow ones before training."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from projects import make_project, run_project
from safetensors.torch import save_file

from pivotune.pipeline.cli.main import pivotune
from pivotune.pipeline.errors import StageError
from pivotune.pipeline.recipe.load import load_recipe, recipe_as_json, recipe_from_json
from pivotune.pipeline.run import samples
from pivotune.pipeline.run.drawing import require_negative, too_slow_before


def images(run: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (run / "images").iterdir()}


def drawn(tmp_path: Path, name: str, *changes: str) -> dict[str, bytes]:
    return images(run_project(load_recipe(tmp_path / "recipe.toml", [*changes]), tmp_path / name).folder)


def test_negative_prompt_and_scheduler_change_the_images_alone(tmp_path: Path) -> None:
    make_project(tmp_path)
    plain = drawn(tmp_path, "plain", "samples.steps=3")
    for name, change in (("negative", "samples.negative=a red <cat>"), ("scheduler", "samples.scheduler=euler-a")):
        changed = drawn(tmp_path, name, "samples.steps=3", change)
        assert changed.keys() == plain.keys()
        assert all(changed[one] != plain[one] for one in plain), name
        exported = [sorted((tmp_path / run).glob("exports/*_embeddings/*")) for run in ("plain", name)]
        assert [one.read_bytes() for one in exported[0]] == [one.read_bytes() for one in exported[1]]


def test_the_scheduler_is_the_models_own_with_another_class(tmp_path: Path, monkeypatch: Any) -> None:
    make_project(tmp_path)
    seen, own = [], samples.draw_images

    def looked_at(model: Any, *arguments: Any) -> Any:
        seen.append((type(model.pipe.scheduler).__name__, model.pipe.scheduler.config.beta_schedule, arguments[-1]))
        return own(model, *arguments)

    monkeypatch.setattr(samples, "draw_images", looked_at)
    drawn(tmp_path, "run", "samples.scheduler=dpm++-2m-karras", "samples.negative=a <cat>")
    beta = json.loads((tmp_path / "model/scheduler/scheduler_config.json").read_text())["beta_schedule"]
    kind = "DPMSolverMultistepScheduler"
    assert seen == [(kind, beta, "a red ring"), (kind, beta, "a <cat>")]  # before and after training


def test_each_prompt_may_have_its_own_seed(tmp_path: Path) -> None:
    make_project(tmp_path)
    prompts = "samples.prompts=['a <cat>', 'a <cat>']"
    found = drawn(tmp_path, "run", prompts, "samples.seeds=[7, 3]", "samples.count=2", "samples.seed=5")
    names = [f"{when}-{number:03d}-{seed}.png" for when in ("before", "after") for number, seed in
             ((0, 7), (0, 8), (1, 3), (1, 4))]  # fmt: skip
    assert sorted(found) == sorted(names)
    usual = drawn(tmp_path, "usual", prompts, "samples.seed=3")
    assert usual["after-001-3.png"] == found["after-001-3.png"]


def test_default_images_before_training_are_left_out_where_they_take_long(tmp_path: Path) -> None:
    make_project(tmp_path)
    lines: list[str] = []
    auto = load_recipe(tmp_path / "recipe.toml", ["samples.before=auto"])
    run = run_project(auto, tmp_path / "auto", progress=lines.append)  # 4 calls of 16x16 against 18
    assert list(images(run.folder)) == ["after-000-0.png"]
    assert [line for line in lines if line.startswith("no sample images before training: they would take more")]
    quick = load_recipe(tmp_path / "recipe.toml", ["samples.before=auto", "train.steps=7", "samples.guidance=1"])
    run = run_project(quick, tmp_path / "quick")  # 2 calls against 42
    assert "before-000-0.png" in images(run.folder)


def test_images_of_prompts_in_the_recipe_are_always_drawn_and_a_replay_draws_the_same(tmp_path: Path) -> None:
    path = make_project(tmp_path)
    path.write_text(path.read_text("utf-8").replace('before = "always"\n', ""), "utf-8")
    default, named = load_recipe(path), load_recipe(path, ["samples.prompts=['a <cat>']"])
    assert (default.samples.before, named.samples.before) == ("auto", "always")
    for recipe in (default, named):
        assert recipe_from_json(recipe_as_json(recipe), path) == recipe


@pytest.mark.parametrize(
    ("family", "change", "message"),
    [
        ("sd1", "samples.seeds=[1, 2]", "2 seeds for 1 prompt; give one for each prompt"),
        ("sd3-without-t5", "samples.scheduler=euler", "schedulers are for diffusion models"),
        ("sd1", "samples.negative=<dog>", "<dog> is not an embedding of this recipe"),
    ],
)
def test_check_names_what_does_not_fit(tmp_path: Path, family: str, change: str, message: str) -> None:
    result = CliRunner().invoke(pivotune, ["check", str(make_project(tmp_path, family)), "--set", change])
    assert message in result.output


def test_a_pipeline_without_negative_prompt_is_named() -> None:
    class Plain:
        def __call__(self, prompt: str) -> None: ...

    model: Any = SimpleNamespace(pipe=Plain(), family=SimpleNamespace(modular=False))
    with pytest.raises(StageError, match="Plain takes no negative prompt; remove it"):
        require_negative(model)


def test_the_images_before_training_are_counted_over_all_stages(tmp_path: Path) -> None:
    recipe = load_recipe(make_project(tmp_path))
    model: Any = SimpleNamespace(resolution=64, denoiser=SimpleNamespace(config=SimpleNamespace()))
    few = replace(recipe, samples=replace(recipe.samples, size=None, count=1, steps=1, guidance=1.0))
    assert too_slow_before(model, few) is False  # 10 against 18
    guided = replace(recipe, samples=replace(few.samples, guidance=2.0))
    assert too_slow_before(model, guided) is True  # 20 against 18


def test_check_names_the_embedding_and_the_file_of_a_base_that_is_not_finite(tmp_path: Path) -> None:
    save_file({"clip_l": torch.tensor([[float("nan")] * 32])}, tmp_path / "broken.safetensors")
    path = make_project(tmp_path, embedding='base = "broken.safetensors"')
    result = CliRunner().invoke(pivotune, ["check", str(path)])
    assert (
        f"<cat>: {tmp_path / 'broken.safetensors'} has values for clip_l that are not finite numbers" in result.output
    )


@pytest.mark.parametrize("prompts", ["[]", '["a <cat>"]'])
def test_sample_images_are_announced_only_where_there_are_prompts(prompts, tmp_path):
    path, lines = make_project(tmp_path, train="resolution = 16"), []
    run_project(load_recipe(path, [f"samples.prompts={prompts}"]), tmp_path / "out", progress=lines.append)
    assert any("drawing sample images after" in line for line in lines) == (prompts != "[]")
