"""Train stages over images of several shapes, with masks and balance; twice, the second time from the cache."""

import json

import pytest
from PIL import Image
from projects import make_project, run_recipe
from recipe_text import noise

from pivotune.pipeline.recipe.load import load_recipe

OTHERS = """
[[concept]]
images = "others"
captions = ["a ring, red, small", "a <cat>"]
shuffle_tags = true
loss_weight = 0.5
flip = true
crop = "random"
rotate = 10
brightness = 0.1
[[concept]]
images = "class"
captions = ["a ring"]
prior = true
images_per_epoch = 2
[data]
buckets = true
balance = "embeddings"
variants = 2
cache_latents = "kept"
"""


@pytest.mark.parametrize("family", ["sd1", pytest.param("sdxl", marks=pytest.mark.slow)])
def test_a_run_exports_the_same_bytes_with_and_without_the_cache(tmp_path, family):
    path = make_project(tmp_path, family, more=OTHERS)
    for number in range(3):
        noise(tmp_path / f"others/{number}.png", 40, 14, number)
        noise(tmp_path / f"class/{number}.png", 14, 40, number)
    Image.new("L", (40, 14), 128).save(tmp_path / "others/1-mask.png")
    recipe, messages, files = load_recipe(path, ["train.steps=6"]), [], []
    for name in ("one", "two"):
        run_recipe(recipe, out=tmp_path / name, progress=messages.append, bar=False)
        exports = tmp_path / name / "exports"
        files.append({file.relative_to(exports): file.read_bytes() for file in exports.rglob("*") if file.is_file()})
    assert files[0] == files[1]
    assert [text for text in messages if "variants" in text] == [
        "9 images: 18 variants encoded, 0 from the cache", "9 images: 0 variants encoded, 18 from the cache",
    ]  # fmt: skip
    manifest = json.loads((tmp_path / "two" / "manifest.json").read_text("utf-8"))
    assert manifest["warnings"] == []
