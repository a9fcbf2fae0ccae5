"""What `check` finds beyond the form, where it is not already among the bad recipes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from pivotune.converters.families import families
from pivotune.pipeline import effnet
from pivotune.pipeline.checks import concepts as check_images
from pivotune.pipeline.checks.embeddings import _similar
from pivotune.pipeline.checks.recipe import check_recipe, checked_recipe
from pivotune.pipeline.data import complete
from pivotune.pipeline.data import images as opened
from pivotune.pipeline.data.captions import Captioned
from pivotune.pipeline.errors import RecipeError
from pivotune.pipeline.recipe.document import shipped
from pivotune.pipeline.recipe.model import Concept, EmbeddingSpec

HERE = Path(__file__).parent
# recipes for the user's own images: how many concepts
OWN_IMAGES = {
    "anima-embedding-lora": 1,
    "captions-masks": 1,
    "chroma-embedding-lora": 1,
    "flux2-dev-embedding-lora": 1,
    "flux2-klein-embedding-lora": 1,
    "hidream-embedding-lora": 1,
    "hunyuan-video-embedding-lora": 1,
    "krea2-embedding-lora": 1,
    "lumina2-embedding-lora": 1,
    "pixart-embedding-lora": 1,
    "qwen-image-embedding-lora": 1,
    "sana-embedding-lora": 1,
    "wan-embedding-lora": 1,
    "z-image-embedding-lora": 1,
    "flux-embedding-lora": 1,
    "sd15": 1,
    "sd2": 1,
    "sd3-embeddings": 1,
    "sdxl-finetune": 1,
    "sdxl-one-encoder": 1,
    "sdxl-prodigy": 1,
    "sdxl-embeddings": 2,
    "sdxl-embeddings-lora": 1,
    "stable-cascade": 1,
}


def texts(path: str | Path, *overrides: str) -> str:
    """All problems as one text."""
    return "\n".join(problem.shown("") for problem in check_recipe(path, overrides).problems)


def test_a_good_recipe_has_no_problem(good: Path) -> None:
    checked = check_recipe(good)
    assert checked.problems == []
    assert (checked.images, checked.captions, checked.captions_with) == (3, 3, {"<emblem>": 3})


def test_the_shipped_recipes() -> None:
    assert set(shipped()) == {"quickstart", "pivotal", "many-embeddings", *OWN_IMAGES}


@pytest.mark.parametrize("name", sorted(OWN_IMAGES))
def test_a_template_lacks_nothing_but_its_images(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(effnet, "torchvision_problem", lambda: None)  # it is optional
    count = OWN_IMAGES[name]
    lacking = check_recipe(name).problems
    assert [problem.key for problem in lacking if problem.severity == "error"] == [
        f"concept.{number}.images" for number in range(1, count + 1)
    ]
    embeddings = [embedding.placeholder for embedding in embeddings_of(name)]
    overrides = [
        f"concept.{number}.{key}={json.dumps(value)}"
        for number in range(1, count + 1)
        for key, value in (
            ("images", str(HERE / "images")),
            ("captions", [f"a photo of {embedding}" for embedding in embeddings]),
        )
    ]
    assert not check_recipe(name, overrides).failed


def embeddings_of(name: str) -> tuple[EmbeddingSpec, ...]:
    recipe = check_recipe(name).recipe
    assert recipe is not None
    return recipe.embeddings


@pytest.mark.parametrize("name", sorted(set(shipped()) - set(OWN_IMAGES)))
def test_a_recipe_for_the_micro_model_has_no_problem(name: str) -> None:
    assert check_recipe(name).problems == []


def test_a_recipe_with_errors_raises(good: Path) -> None:
    with pytest.raises(RecipeError, match=r"concept\.images"):
        checked_recipe(good, ["concept.images=nowhere"])


def test_problems_come_in_the_order_of_the_lines(good: Path) -> None:
    good.write_text(
        good.read_text("utf-8").replace("<emblem>", "<other>").replace("steps = 10", "steps = 10\nwarmup_steps = 10")
    )
    lines = [problem.line for problem in check_recipe(good).problems]
    assert lines == sorted(lines)
    assert len(lines) >= 2


def test_a_warning_is_shown_as_one(good: Path) -> None:
    problems = check_recipe(good, ["train.warmup_steps=10"]).problems
    assert [problem.severity for problem in problems] == ["warning"]
    assert problems[0].shown("x.toml").startswith("x.toml: --set train.warmup_steps=10: warning: the warmup takes all")


def test_frozen_embeddings_need_no_captions(good: Path) -> None:
    overrides = ["embedding.train=false", "embedding.placeholder=other", "train.lora={}"]
    problems = check_recipe(good, overrides).problems
    assert {problem.severity for problem in problems} == {"warning"}


@pytest.mark.parametrize(
    ("placeholder", "hint"),
    [
        ("a blip", "; the first is 'a blue ring'"), ("a red ring", "; the first is 'a blue ring'"),
        ("a blum", "; they contain 'a blue' (once)"), ("my rung", "; they contain 'my ring' (2 times)"),
        ("<rine>", "; they contain 'ring' (3 times)"),
    ],
)  # fmt: skip
def test_the_hint_names_similar_text_in_the_captions_only(placeholder: str, hint: str) -> None:
    assert _similar(placeholder, ["a blue ring", "my ring.", "(my ring)"]) == hint


def test_an_embedding_in_few_captions_is_a_warning(good: Path) -> None:
    captions = json.dumps(["x"] * 30 + ["a <emblem>"])
    assert "only 3 of the 93 captions contain '<emblem>'" in texts(good, f"concept.captions={captions}")


def test_an_unknown_placeholder_in_a_prompt_is_a_warning(good: Path) -> None:
    assert "<emblm> is not an embedding of this recipe; did you mean '<emblem>'?" in texts(
        good, 'samples.prompts=["a <emblm>"]'
    )


@pytest.mark.parametrize("also", ["lora = {}", ""])
def test_a_recipe_without_embeddings_is_an_error(good: Path, also: str) -> None:
    good.write_text(
        "\n".join(good.read_text("utf-8").split("\n")[:6])
        + '\n[[stage]]\nkind = "train"\nsteps = 1\n'
        + also
        + '\n[[stage]]\nkind = "export"\n'
    )
    checked = check_recipe(good)
    assert checked.failed
    found = [one for one in checked.problems if "[[embedding]]" in one.text and one.severity == "error"]
    assert [one.key for one in found] == ["stage.1"]  # once, not for each stage
    assert "no embeddings in the recipe" in found[0].text


def test_images_and_captions_are_read_once_in_an_invalid_recipe(good: Path, monkeypatch) -> None:
    seen: Counter[str] = Counter()
    for module, name in ((opened, "inspect_image"), (complete, "refuse_truncated")):
        was = getattr(module, name)
        monkeypatch.setattr(module, name, lambda path, *more, was=was: (seen.update([str(path)]), was(path, *more))[1])
    was_read = check_images.collect_captions

    def read(concept: Concept) -> Captioned:
        seen["captions"] += 1
        return was_read(concept)

    monkeypatch.setattr(check_images, "collect_captions", read)
    wrong = ["train.schedule=7", 'export.targets="all"', "tokenize.pad_with=' '"]
    assert len(check_recipe(good, wrong).problems) == 3
    images = len(list((HERE / "images").glob("*.png")))
    assert seen.pop("captions") == 1
    assert len(seen) == images
    assert set(seen.values()) == {2}  # once for the start of the file, once for its end


def test_no_stage_follows_export(good: Path) -> None:
    good.write_text(
        good.read_text("utf-8")
        + '\n[[stage]]\nkind = "train"\nsteps = 1\n[[stage]]\nkind = "rescale"\n[[stage]]\nkind = "export"\n'
    )
    shown = texts(good)
    assert "train is after export" in shown
    assert "warning: rescale is after export" in shown
    assert "duplicate export stage" in shown


def test_a_recipe_without_export_is_an_error(good: Path) -> None:
    good.write_text(good.read_text("utf-8").replace('kind = "export"', 'kind = "rescale"'))
    checked = check_recipe(good)
    assert [problem.text.partition(",")[0] for problem in checked.problems] == ["no export stage"]
    assert checked.failed


def test_the_family_is_read_from_the_model(good: Path) -> None:
    sdxl = json.dumps(str(HERE / "sdxl"))
    assert "no learning rate for clip_g" in texts(good, f"model.base={sdxl}", "train.learning_rate.clip_l=0.1")
    assert texts(good, f"model.base={sdxl}", "train.learning_rate={clip_l = 0.1, clip_g = 0}") == ""


@pytest.mark.parametrize(
    ("content", "text"),
    [(b"", "the file is empty"), (b"GIF89a", "the file is not an image"), (b"<html>", "the file is not an image")],
)
def test_a_file_that_is_not_an_image_is_an_error(good: Path, content: bytes, text: str) -> None:
    (good.parent / "a.png").write_bytes(content)
    assert text in texts(good, f"concept.images={good.parent}", 'concept.captions=["<emblem>"]')


def test_many_problems_of_a_kind_are_counted(good: Path) -> None:
    for number in range(50):
        (good.parent / f"{number}.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    shown = texts(good, f"concept.images={good.parent}")
    assert shown.count("the caption of") == 10
    assert "and 40 more of this kind" in shown


def test_images_given_as_a_file(good: Path) -> None:
    assert "is a file; give the folder" in texts(good, f"concept.images={good}")


def test_local_models(good: Path) -> None:
    folder = good.parent
    (folder / "m.safetensors").write_bytes(b"")
    (folder / "m.bin").write_bytes(b"")
    (folder / "plain").mkdir()
    single = texts(good, "model.base=m.safetensors")
    assert f"do not tell its family: set family = one of {', '.join(families())}" in single
    assert "warning: without config" in single
    assert "is not a checkpoint" in texts(good, "model.base=./m.bin")
    assert "no model_index.json" in texts(good, "model.base=./plain")
    assert "m.safetensors does not exist" in texts(good, "model.base=x/m.safetensors")
    assert texts(good, "model.base=owner/name") == ""
    assert "or a hub id" in texts(good, "model.base=a/b/c")


def test_the_trigger_of_every_target_is_shown(good: Path) -> None:
    shown = texts(
        good,
        "embedding.placeholder=émblem x",
        'concept.captions=["émblem x"]',
        'export.targets=["invokeai", "comfyui"]',
    )
    assert "invokeai cannot use all characters of 'émblem x'; type <mblem x> there" in shown
    assert "embedding:émblem_x" in shown


@pytest.mark.parametrize("embedding", ["AND", "BREAK"])
def test_names_that_a_program_reserves(good: Path, embedding: str) -> None:
    shown = texts(
        good, f"embedding.placeholder={embedding}", f'concept.captions=["{embedding}"]', 'export.targets=["a1111"]'
    )
    assert f"type {embedding}_ there" in shown


def test_check_needs_no_heavy_library(good: Path) -> None:
    code = (
        "import sys; from pivotune.pipeline.checks.recipe import check_recipe\n"
        f"assert not check_recipe({str(good)!r}).problems\n"
        "heavy = {'torch', 'numpy', 'transformers', 'diffusers', 'peft', 'safetensors', 'huggingface_hub'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("schedule", "right"),
    [
        ("{ kind = 'piecewise', pieces = [[0, 1.0], [0.5, 0.1]] }", True),
        ("{ kind = 'piecewise' }", False),
        ("{ kind = 'linear', pieces = [[5, 0.1]] }", False),
    ],
)
def test_piecewise_and_pieces_need_each_other(good, schedule, right):
    found = [problem.text for problem in check_recipe(good, [f"train.schedule={schedule}"]).problems]
    assert [text.partition(" needs")[0] for text in found] == ([] if right else ["piecewise"])


@pytest.mark.parametrize("name", ["con", "NUL", "aux.v2", "com1"])
def test_a_name_that_is_a_device_on_windows_is_refused(good: Path, name: str) -> None:
    (found,) = check_recipe(good, [f"name='{name}'"]).problems
    assert "is a device on Windows" in found.text
    assert check_recipe(good, ["name='console'"]).problems == []
