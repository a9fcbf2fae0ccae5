"""Checks and plans of images: without torch, and all problems at once."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from bad_images import BROKEN, broken
from PIL import Image
from recipe_text import noise, recipe_text, write_recipe

from pivotune.pipeline.checks.plan import make_plan
from pivotune.pipeline.checks.plan_text import plan_json, plan_text
from pivotune.pipeline.checks.recipe import check_recipe
from pivotune.pipeline.data import complete as open_module
from pivotune.pipeline.models.tokenizers import load_tokenizers
from pivotune.pipeline.recipe.load import load_recipe

EMBEDDINGS = '[[embedding]]\nplaceholder = "<a>"\n[[embedding]]\nplaceholder = "<b>"'
ONE = '[[concept]]\nimages = "images"\ncaptions = ["<a> <b>"]\n'


def recipe(folder, concepts=ONE, data=""):
    text = recipe_text(
        "x", concepts=concepts, embeddings=EMBEDDINGS, more=f"[data]\n{data}", train="steps = 30\nbatch_size = 4"
    )
    return write_recipe(folder / "x.toml", text)


def problems(path, severity="error"):
    return [problem.text for problem in check_recipe(path).problems if problem.severity == severity]


def test_bad_images_are_all_reported(tmp_path):
    (tmp_path / "images").mkdir()
    broken(tmp_path / "images")
    Image.new("RGB", (1, 1)).save(tmp_path / "images/one.png")
    Image.new("RGB", (40, 4000)).save(tmp_path / "images/long.png")
    (tmp_path / "images/dead.png").symlink_to(tmp_path / "nowhere.png")
    shown = "\n".join(problems(recipe(tmp_path, ONE, "balance = 'none'")))
    late = ("float.tif", "missing.png", "folder.png")  # found when they are decoded
    names = [name for name, _ in BROKEN if name not in late] + ["one.png", "long.png", "dead.png"]
    assert f"and {len(names) - 10} more of this kind" in shown
    assert [name for name in sorted(names)[:10] if f"/{name}: " not in shown] == []


@pytest.mark.parametrize("ending", ["png", "jpg", "webp", "gif", "bmp"])
def test_a_truncated_image_is_an_error_and_trailing_bytes_are_not(tmp_path, monkeypatch, ending):
    whole, path = noise(tmp_path / f"images/a.{ending}", 64, 64), recipe(tmp_path, ONE, "balance = 'none'")
    with monkeypatch.context() as patch:
        patch.setattr(open_module, "open_image", None)  # no image is decoded
        assert problems(path) == []
    data = whole.read_bytes()
    whole.write_bytes(data + b"made by a telephone" * 20)
    assert problems(path) == []
    whole.write_bytes(data[:-100])
    [problem] = problems(path)
    assert problem.startswith(f"{whole}: not a readable image")


def test_warnings_about_images(tmp_path):
    noise(tmp_path / "images/wide.png", 200, 60)
    noise(tmp_path / "images/tiny.png", 9, 9)
    noise(tmp_path / "images/jpeg.jpg", 64, 64).rename(tmp_path / "images/other.png")
    shown = problems(recipe(tmp_path, ONE.replace('"images"', '"images"\nresolution = 64')), "warning")
    wide = "wide.png: 30% of its 200x60 pixels are left after cropping; set data.buckets = true"
    assert any(wide in text for text in shown)
    assert any("tiny.png: 9x9 pixels are enlarged more than 4x" in text for text in shown)
    assert any("other.png: a JPEG file with another extension" in text for text in shown)
    assert not any("wide.png" in text for text in problems(recipe(tmp_path, ONE, "buckets = true"), "warning"))


def test_batches_larger_than_an_epoch_are_a_warning(tmp_path):
    noise(tmp_path / "images/a.png", 64, 64)
    (text,) = problems(recipe(tmp_path, ONE + "repeats = 3"), "warning")
    assert text.startswith("larger than an epoch of 3 images")
    assert problems(recipe(tmp_path, ONE + "repeats = 4"), "warning") == []


def test_prior_images_alone_are_an_error(tmp_path):
    noise(tmp_path / "images/a.png")
    assert any("every concept has prior = true" in text for text in problems(recipe(tmp_path, ONE + "prior = true")))


def test_images_in_subfolders_are_mentioned(tmp_path):
    noise(tmp_path / "images/sub/a.png")
    assert any("1 folder; recursive = true includes them" in text for text in problems(recipe(tmp_path)))
    assert problems(recipe(tmp_path, ONE + "recursive = true")) == []


def test_neither_check_nor_plan_needs_torch_for_images(tmp_path):
    noise(tmp_path / "images/a.png", 64, 64)
    path = recipe(tmp_path, ONE, "buckets = true\nbalance = 'embeddings'")
    code = (
        "import sys; from pivotune.pipeline.checks.recipe import checked_recipe\n"
        "from pivotune.pipeline.checks.survey import survey, survey_images\n"
        f"recipe, _ = checked_recipe({str(path)!r})\n"
        "assert survey(recipe, survey_images(recipe), 64, 4).batches == 1\n"
        "heavy = {'torch', 'diffusers', 'transformers', 'peft', 'PIL.PdfImagePlugin', 'pivotune.converters.read'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.fixture
def uneven(tmp_path):
    """Two images of <a>, one of them with a mask, twelve of <b> in two shapes."""
    for number in range(2):
        noise(tmp_path / f"a/{number}.png", 64, 64, number)
    Image.new("L", (64, 64)).save(tmp_path / "a/0-mask.png")
    for number in range(12):
        noise(tmp_path / f"b/{number}.png", *((96, 48) if number % 2 else (64, 64)), number)
    concepts = (
        '[[concept]]\nimages = "a"\ncaptions = ["<a>"]\nloss_weight = 2\n'
        '[[concept]]\nimages = "b"\ncaptions = ["<b>", "the <b>"]\n'
    )

    def plan(data=""):
        loaded = load_recipe(recipe(tmp_path, concepts, data))
        return make_plan(loaded, load_tokenizers(loaded.model))

    return plan


def test_a_plan_counts_the_images_of_an_epoch(uneven):
    plain, balanced = uneven(), uneven("buckets = true\nbalance = 'concepts'")
    first = plan_json(plain)["epochs"]["3"]
    assert first["shapes"] == {"64x64": 14}
    assert [row["shown"] for row in first["concepts"]] == [2, 12]
    assert (first["shown"], first["batches"]) == (14, 4)
    assert first["embeddings"] == {"<a>": {"images": 2, "shown": 2.0}, "<b>": {"images": 12, "shown": 12.0}}
    second = json.loads(json.dumps(plan_json(balanced)))["epochs"]["3"]
    assert second["shapes"] == {"64x64": 8, "88x40": 6}
    assert [row["shown"] for row in second["concepts"]] == [12, 12]
    assert second["embeddings"]["<a>"] == {"images": 2, "shown": 12.0}
    assert second["batches"] == 5 + 2
    assert (plain.stages[2].epochs, plain.stages[2].images) == (7.5, 105)
    text = plan_text(balanced)
    assert "/a: 2 images, sampled 12 times per epoch, 1 with a mask, loss weight 2\n" in text
    assert "cropped to 64x64 (8), 88x40 (6)\n" in text
    assert "<a>: in 2 of 14 images, sampled 12 times per epoch\n" in text


def test_checking_opens_each_image_once(tmp_path, monkeypatch):
    first = noise(tmp_path / "images/0.png", 32, 32)
    for number in range(50):
        (tmp_path / f"images/{number}.png").write_bytes(first.read_bytes() + str(number).encode())
    opened: list[str] = []
    pillow = Image.open

    def counted(file, *arguments, **options):
        opened.append(Path(getattr(file, "name", file)).name)
        return pillow(file, *arguments, **options)

    monkeypatch.setattr(Image, "open", counted)
    assert problems(recipe(tmp_path)) == []
    assert sorted(opened) == sorted(f"{number}.png" for number in range(50))


def test_embeddings_that_may_be_dropped_or_are_in_prior_captions_are_warnings(tmp_path):
    noise(tmp_path / "images/a.png", 64, 64)
    captions = '["<a>, ring, <b>", "<a>, <b>, red"]'
    tags = f'[[concept]]\nimages = "images"\ncaptions = {captions}\ntag_dropout = 0.1\nrepeats = 4\n'
    shown = problems(recipe(tmp_path, tags + "keep_tags = 2"), "warning")
    assert [text.partition(",")[0] for text in shown] == ["1 of 2 captions may lose the embedding"]
    assert problems(recipe(tmp_path, tags + "keep_tags = 3"), "warning") == []
    prior = ONE + "repeats = 4\n" + ONE + "prior = true\n"
    (text,) = problems(recipe(tmp_path, prior), "warning")
    assert text.startswith("captions of prior images contain <a>, <b>")


def test_an_embedding_in_prior_captions_only_is_an_error(tmp_path):
    noise(tmp_path / "images/a.png", 64, 64)
    concepts = ONE.replace("<a> ", "") + ONE + "prior = true\n"
    assert any("the caption does not contain '<a>'" in text for text in problems(recipe(tmp_path, concepts)))


def test_capitals_without_effect_are_a_warning(tmp_path):
    noise(tmp_path / "images/a.png", 64, 64)
    (text,) = problems(recipe(tmp_path, ONE + "repeats = 4\ncapitals = 0.5\n"), "warning")
    assert text.startswith("no effect: the tokenizers of")
