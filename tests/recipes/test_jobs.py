"""The usual jobs of other trainers as recipes: all are checked, the most different ones are trained for two steps."""

from __future__ import annotations

import json
import re
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import tomli
from projects import BUILD, image_side, run_project
from recipe_text import noise

from pivotune.converters.families import families
from pivotune.pipeline import effnet
from pivotune.pipeline.checks import model
from pivotune.pipeline.checks.recipe import check_recipe
from pivotune.pipeline.recipe.document import shipped
from pivotune.pipeline.recipe.options import STAGE_OPTIONS

JOBS = [
    pytest.param(job, id=f"{file.stem}: {job['name']}")
    for file in sorted((Path(__file__).parent / "jobs").glob("*.toml"))
    for job in tomli.loads(file.read_text("utf-8"))["job"]
]
STAGES = ("tokenize", "inject", "rescale", "export")
IN_TRAIN = ("lora", "finetune", "timesteps", "objective", "noise")
QUICK = {  # the most different ones, whose tiny models are quick
    "diffusers: Textual inversion", "diffusers: Custom Diffusion", "diffusers: Pivotal tuning for SDXL",
    "kohya: DreamBooth folders with class images",
    "onetrainer: Z-Image LoRA (16 GB, 8 GB)",
}  # fmt: skip


def job_recipe(job: dict[str, Any]) -> dict[str, Any]:
    """The data of a job's recipe: the shipped one with the job's tables merged in, see jobs/onetrainer.toml."""
    data: dict[str, Any] = tomli.loads(shipped()[job["recipe"]].read_text("utf-8"))
    for key in ("model", "data", "validation", "samples"):
        if key in job:
            data[key] = data.get(key, {}) | job[key]
    for key in ("concept", "embedding"):
        if key in job:
            data[key] = job[key] if isinstance(job[key], list) else [one | job[key] for one in data[key]]
    first = next(index for index, stage in enumerate(data["stage"]) if stage["kind"] == "train")
    train = {"kind": "train"} | job["train"] | {key: job[key] for key in IN_TRAIN if key in job}
    others = [stage for stage in data["stage"] if stage["kind"] != "train"]
    others = [stage | job.get(stage["kind"], {}) for stage in others if job.get(stage["kind"]) is not False]
    unknown = set(job) - {"name", "source", "recipe", "train", "model", "data", "validation", "samples", "concept",
                          "embedding", *IN_TRAIN, *STAGES}  # fmt: skip
    assert unknown == set()
    return data | {"stage": [*others[:first], train, *others[first:]]}


def toml(value: Any) -> str:
    """A value as inline TOML."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {toml(one)}" for key, one in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    return json.dumps(value)


def write_job(folder: Path, data: dict[str, Any], side: int = 16) -> Path:
    """Write the recipe, and the images and captions that it names; returns its path."""
    placeholders = [one["placeholder"] for one in data["embedding"]]
    prior = {concept["images"] for concept in data["concept"] if concept.get("prior")}
    text = f"a photo of {' and '.join(placeholders)}"
    for name in {concept["images"] for concept in data["concept"]}:
        for number in range(4):
            image = noise(folder / name / f"{number}.png", side, side + 4, seed=number)
            image.with_suffix(".txt").write_text("a photo of a dog" if name in prior else f"{text}, a, b", "utf-8")
    files = {image.name: text for image in sorted((folder / name).glob("*.png"))} if placeholders else {}
    tables = {
        "templates.txt": "".join(f"{frame} {text}\n" for frame in ("a rendering of", "a close-up of")),
        "metadata.json": json.dumps({Path(one).stem: {"caption": text, "tags": "a, b"} for one in files}),
        "metadata.jsonl": "".join(json.dumps({"file_name": one, "text": text}) + "\n" for one in files),
    }
    for concept in data["concept"]:
        if str(concept.get("captions", "")).startswith("images/"):
            file = folder / concept["captions"]
            file.write_text(tables[file.name], "utf-8")
    path = folder / "recipe.toml"
    path.write_text("".join(f"{key} = {toml(value)}\n" for key, value in data.items()), "utf-8")
    return path


@pytest.mark.parametrize("job", JOBS)
def test_every_job_is_a_recipe_without_errors(job: dict[str, Any], tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(effnet, "torchvision_problem", lambda: None)  # it is optional, as bitsandbytes
    monkeypatch.setattr(model, "find_spec", lambda name: True)
    checked = check_recipe(write_job(tmp_path, job_recipe(job)))
    assert [problem.shown("") for problem in checked.problems if problem.severity == "error"] == []
    assert checked.images > 0


def test_a_job_has_a_name_and_a_source() -> None:
    names = [(one.id, one.values[0]["source"]) for one in JOBS]
    assert len({name for name, _ in names}) == len(JOBS) >= 70
    assert all(re.match(r"(training_presets|docs|config|examples)/\S", source) for _, source in names)


def tiny(data: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The same recipe for a tiny model and two steps; optimizers that need a package or a device become AdamW."""
    family = data["model"].get("family", "sd1")
    name = "wan-2.2" if "Wan2.2" in data["model"]["base"] else "flux2-klein-4b" if "klein" in family else family
    BUILD[name]().save_pretrained(folder / "model")
    side = image_side(name)
    data["model"] = {"base": "model", "family": name if name in families() else family}
    text = json.dumps(data).replace('"adamw8bit"', '"adamw"').replace('"qwen3_8b"', '"qwen3_4b"')
    data = json.loads(text)
    for concept in data["concept"]:
        concept.pop("generate", None)
        if "resolution" in concept:
            concept["resolution"] = side * 2 if concept["resolution"] > 512 else side
    for stage in data["stage"]:
        if stage["kind"] == "train":
            stage |= {"steps": 2, "batch_size": 2, "resolution": side, "compile": False}
            stage["warmup_steps"] = 0
            stage.pop("watch", None)
            stage.pop("save", None)
    samples = {"prompts": data["samples"].get("prompts", [])[:1], "count": 1, "steps": 1, "size": side}
    return data | {"samples": samples, "device": "cpu", "threads": 1}


@pytest.mark.parametrize(
    "job", [pytest.param(*one.values, id=one.id, marks=() if one.id in QUICK else pytest.mark.slow) for one in JOBS]
)
def test_a_job_trains_on_a_tiny_model(job: dict[str, Any], tmp_path: Path) -> None:
    data = job_recipe(job)
    if families()[data["model"].get("family", "sd1")].image_encoder:
        pytest.importorskip("torchvision")
    path = write_job(tmp_path, tiny(data, tmp_path), side=64)
    if "prodigy" in path.read_text("utf-8"):
        pytest.importorskip("prodigyopt")
    done = run_project(path, tmp_path / "out")
    assert json.loads((done.folder / "manifest.json").read_text("utf-8"))["status"] == "finished"


def test_the_quick_jobs_exist() -> None:
    assert {one.id for one in JOBS} >= QUICK


def test_the_guide_names_recipes_and_keys_that_exist() -> None:
    guide = Path(str(files("pivotune.recipes"))) / "coming-from.md"
    reference = Path(str(files("pivotune.schemas"))) / "README.md"
    keys = set(re.findall(r"^\| `(\w+)` \|", reference.read_text("utf-8"), re.M)) | set(STAGE_OPTIONS)
    text = guide.read_text("utf-8").split("## Not supported")[0]
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    named = {name for row in rows if len(row) == 3 for name in re.findall(r"`([\w-]+)`", row[1])}
    assert named >= {"sd15", "captions-masks"}
    assert [name for name in named if name not in shipped()] == []
    used = [one for row in rows for one in re.findall(r"`([^`]+)`", row[-1]) if not one.startswith('"')]
    parts = [part for one in used for part in one.partition(" =")[0].split(".")]
    assert len(parts) > 100
    assert [part for part in parts if part not in keys] == []
