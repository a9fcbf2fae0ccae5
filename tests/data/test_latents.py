"""Encoded images: cached on disk by content, encoded again after a change, one by one."""

import shutil
from pathlib import Path

import pytest
import torch
from bad_images import BROKEN, broken
from data_of import dataset_of, recipe_of
from PIL import Image
from recipe_text import noise
from tiny import tiny_vae

from pivotune.pipeline.data import latents as module
from pivotune.pipeline.data.augment import Variant
from pivotune.pipeline.data.cache import Cache, Encoded, cache_folder
from pivotune.pipeline.errors import StageError

CAPTIONS = {"captions": ["a <e>"]}


@pytest.fixture
def folder(tmp_path) -> Path:
    for number in range(4):
        noise(tmp_path / f"images/{number}.png", 24, 16, seed=number)
    return tmp_path


def counts(folder, vae, *concepts, size: int = 2, cache="kept", **options) -> tuple[int, int]:
    """Variants found in the cache and encoded."""
    dataset = dataset_of(recipe_of(folder, *(concepts or (CAPTIONS,)), cache_latents=cache), vae, size, **options)
    return dataset.latents.hits, dataset.latents.misses


def test_only_changed_images_are_encoded_again(folder, vae):
    assert counts(folder, vae) == (0, 4)
    assert counts(folder, vae) == (4, 0)
    noise(folder / "images/2.png", 24, 16, seed=99)
    assert counts(folder, vae) == (3, 1)
    shutil.copy(folder / "images/0.png", folder / "images/new name.png")
    assert counts(folder, vae) == (5, 0)  # found by content, whatever it is called


def test_mask_resolution_crop_and_mirror_are_part_of_the_content(folder, vae):
    counts(folder, vae)
    assert counts(folder, vae, resolution=8) == (0, 4)
    assert counts(folder, vae, flip=True) == (4, 4)
    Image.new("L", (24, 16), 100).save(folder / "images/1-mask.png")
    assert counts(folder, vae) == (3, 1)
    Image.new("L", (24, 16), 200).save(folder / "images/1-mask.png")
    assert counts(folder, vae) == (3, 1)
    assert counts(folder, vae) == (4, 0)
    assert counts(folder, vae, CAPTIONS | {"masks": "none"}) == (4, 0)
    assert counts(folder, vae, CAPTIONS | {"crop": "random"}) == (0, 16)
    assert counts(folder, vae, CAPTIONS | {"crop": "random"}) == (16, 0)


def test_captions_steps_and_the_stages_seed_are_not_part_of_the_content(folder, vae):
    concept = CAPTIONS | {"crop": "random", "brightness": 0.1}
    counts(folder, vae, concept)
    assert counts(folder, vae, concept | {"captions": ["other"], "repeats": 3}, size=1, seed=1003) == (16, 0)


def test_another_vae_has_other_cache_entries(folder, vae):
    counts(folder, vae)
    torch.manual_seed(1)
    assert counts(folder, tiny_vae().eval()) == (0, 4)


def test_a_cached_image_gives_the_same_bytes(folder, vae):
    concept = CAPTIONS | {"crop": "random", "flip": True}
    batches = [
        [dataset_of(recipe_of(folder, concept, cache_latents=cache), vae).at(number) for number in range(8)]
        for cache in ("memory", "kept", "kept")
    ]
    for first, second, third in zip(*batches, strict=True):
        assert torch.equal(first.latents, second.latents)
        assert torch.equal(second.latents, third.latents)
        assert torch.equal(first.sizes, third.sizes)


@pytest.mark.parametrize("harm", ["cut", "bit", "empty", "other"])
def test_a_corrupt_file_is_encoded_again(folder, vae, harm):
    counts(folder, vae)
    before = dataset_of(recipe_of(folder, CAPTIONS, cache_latents="kept"), vae).at(0)
    file = sorted((folder / "kept").rglob("*.safetensors"))[0]
    data = bytearray(file.read_bytes())
    data[-9] ^= 1
    other = sorted((folder / "kept").rglob("*.safetensors"))[1].read_bytes()[:-20]
    file.write_bytes({"cut": data[:-9], "bit": data, "empty": b"", "other": other}[harm])
    assert counts(folder, vae) == (3, 1)
    assert counts(folder, vae) == (4, 0)
    assert torch.equal(dataset_of(recipe_of(folder, CAPTIONS, cache_latents="kept"), vae).at(0).latents, before.latents)


@pytest.mark.parametrize(
    ("mean", "deviation", "mask"),
    [((4, 9, 9), (4, 9, 9), None), ((4, 1), (4, 1), None), (None, None, (1, 2, 2))],
)
def test_an_entry_of_another_shape_is_encoded_again(folder, vae, mean, deviation, mask):
    counts(folder, vae)
    cache = Cache(folder / "kept")
    file = sorted((folder / "kept").rglob("*.safetensors"))[0]
    kept = cache.read(file.stem)
    made = (torch.zeros(shape) if shape else old for shape, old in ((mean, kept.mean), (deviation, kept.deviation)))
    cache.write(file.stem, Encoded(*made, torch.zeros(mask, dtype=torch.uint8) if mask else None))  # its hash is right
    assert counts(folder, vae) == (3, 1)
    assert counts(folder, vae) == (4, 0)


def test_images_beyond_the_memory_limit_are_read_from_the_cache(folder, vae, monkeypatch):
    """With room for one image all batches are the same, and a deleted one is encoded again."""
    recipe = recipe_of(folder, CAPTIONS, cache_latents="kept")
    expected = [dataset_of(recipe, vae).at(number).latents for number in range(4)]
    monkeypatch.setattr(module, "MEMORY_LIMIT", 3000)
    small = dataset_of(recipe, vae)
    assert len(small.latents._in_memory) == 1
    assert [torch.equal(small.at(number).latents, expected[number]) for number in range(4)] == [True] * 4
    shutil.rmtree(folder / "kept")
    assert [torch.equal(small.at(number).latents, expected[number]) for number in range(4)] == [True] * 4
    assert small.latents.misses == 3
    assert len(list((folder / "kept").rglob("*.safetensors"))) == 3


def test_a_cache_that_cannot_be_written_is_a_warning(folder, vae):
    (folder / "kept").write_text("a file, not a folder")
    warnings = []
    dataset = dataset_of(recipe_of(folder, CAPTIONS, cache_latents="kept"), vae, warn=warnings.append)
    assert len(warnings) == 1
    assert "encoded images are not cached on disk" in warnings[0]
    assert dataset.latents.misses == 4
    dataset.at(0)
    assert dataset.latents.misses == 4


def test_the_folder_of_the_cache(tmp_path, monkeypatch):
    monkeypatch.delenv("PIVOTUNE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder("user", None) == tmp_path / "pivotune" / "latents"
    monkeypatch.setenv("PIVOTUNE_CACHE", str(tmp_path / "own"))
    assert cache_folder("user", None) == tmp_path / "own" / "latents"
    assert cache_folder("run", tmp_path / "run") == tmp_path / "run" / "latents"
    assert cache_folder("memory", tmp_path) is cache_folder("off", tmp_path) is None


def test_without_a_cache_each_use_has_another_variant(folder, vae):
    concept = CAPTIONS | {"crop": "random", "brightness": 0.2}
    recipe = recipe_of(folder, concept, cache_latents="off")
    dataset = dataset_of(recipe, vae, size=1)
    crops = [tuple(dataset.at(number).sizes[0, 2:4].tolist()) for number in range(60)]
    lights = {round(float(dataset.at(number).latents.mean()), 4) for number in range(12)}
    assert len(set(crops)) > 4
    assert len(lights) == 12
    again = dataset_of(recipe, vae, size=1)
    assert torch.equal(again.at(7).latents, dataset.at(7).latents)


def test_the_number_of_cached_variants(folder, vae):
    recipe = recipe_of(folder, CAPTIONS | {"crop": "random"}, variants=3)
    dataset = dataset_of(recipe, vae, size=4)
    crops: dict[int, set] = {}
    for number in range(40):
        batch = dataset.at(number)
        for example, size in zip(batch.examples, batch.sizes.tolist(), strict=True):
            crops.setdefault(example, set()).add(tuple(size))
    assert {len(seen) for seen in crops.values()} <= {2, 3}  # two of three may round to the same pixel
    assert dataset.latents.misses == 12


def test_images_are_encoded_one_by_one(folder, vae, monkeypatch):
    """The encoding of an image does not depend on the others: alone it has the same bits."""
    together = dataset_of(recipe_of(folder, CAPTIONS, cache_latents="memory"), vae, size=4)
    for number in (0, 1, 3):
        (folder / f"images/{number}.png").unlink()
    alone = dataset_of(recipe_of(folder, CAPTIONS, cache_latents="memory"), vae, size=4)
    place = next(n for n, example in enumerate(together.examples) if example.image.name == "2.png")
    first = together.latents.get(together.examples[place], Variant())
    second = alone.latents.get(alone.examples[0], Variant())
    assert torch.equal(first.mean, second.mean)
    assert torch.equal(first.deviation, second.deviation)


@pytest.mark.parametrize("cache", ["memory", "off", "kept"])
def test_all_bad_images_are_listed_before_the_first_step(folder, vae, cache):
    broken(folder / "images")
    noise(folder / "images/long.png", 300, 8)
    with pytest.raises(StageError) as caught:
        dataset_of(recipe_of(folder, CAPTIONS, cache_latents=cache), vae)
    shown = str(caught.value).splitlines()
    names = [name for name, _ in BROKEN if name not in ("missing.png", "folder.png")]
    assert len(shown) == len(names) + 1
    for name in [*names, "long.png"]:
        assert sum(f"/{name}: " in line for line in shown) == 1, name
    assert any("300x8 pixels cropped to 16x16 leave 2.7% of it" in line for line in shown)


def test_many_bad_images_are_counted(folder, vae):
    for number in range(30):
        (folder / f"images/bad {number}.png").write_bytes(b"x")
    with pytest.raises(StageError, match="and 10 more"):
        dataset_of(recipe_of(folder, CAPTIONS), vae)
