"""Embeddings that go on from a file: its very vectors, whatever dialect; another number of them is refused or asked
for.
"""

import json

import pytest
import torch
from projects import make_project, run_project
from safetensors.torch import load_file, save_file

from pivotune.pipeline.checks.recipe import check_recipe
from pivotune.pipeline.errors import StageError
from pivotune.pipeline.recipe.load import load_recipe, recipe_as_json, recipe_from_json


def vectors(rows=3, width=32):
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(rows))


def based(folder, name="old.safetensors", **changes):
    """The overrides that let the project's embedding start from a file, frozen."""
    options = {"base": str(folder / name), "train": False, **changes}
    return [f"embedding.{key}={json.dumps(value)}" for key, value in options.items()] + [
        "train.embeddings=false", "train.steps=1", "train.lora={ rank = 1 }", "samples.prompts=[]",
    ]  # fmt: skip


def exported(folder):
    return load_file(folder / "exports" / "tiny_embeddings" / "cat.safetensors")


def problems(recipe, overrides):
    return [problem.text for problem in check_recipe(recipe, overrides).problems if problem.severity == "error"]


def test_an_embedding_starts_from_its_base_bit_for_bit(tmp_path):
    recipe = make_project(tmp_path)
    save_file({"emb_params": vectors()}, tmp_path / "old.safetensors")
    assert problems(recipe, based(tmp_path)) == []
    loaded = load_recipe(recipe, based(tmp_path))
    assert recipe_from_json(json.loads(json.dumps(recipe_as_json(loaded))), loaded.path) == loaded
    folder = run_project(loaded, tmp_path / "run").folder
    [out] = exported(folder).values()
    assert torch.equal(out, vectors())
    manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
    assert manifest["embeddings"][0]["encoders"]["clip_l"]["tokens"] == ["old:1</w>", "old:2</w>", "old:3</w>"]
    assert "starts from old.safetensors (sha256" in str(manifest["stages"][0]["notes"])


@pytest.mark.parametrize(("tokens", "resize"), [(2, "cut"), (5, "pad")])
def test_another_number_of_vectors_needs_resize(tmp_path, tokens, resize):
    recipe = make_project(tmp_path)
    torch.save({"string_to_param": {"*": vectors()}, "name": "old", "string_to_token": {"*": 265}}, tmp_path / "old.pt")
    [message] = problems(recipe, based(tmp_path, "old.pt", tokens=tokens))
    assert message == f"the base has 3 vectors for clip_l; remove tokens, or set resize = '{resize}'"
    with pytest.raises(StageError, match=f"its base has 3 vectors and tokens = {tokens}"):
        run_project(load_recipe(recipe, based(tmp_path, "old.pt", tokens=tokens)), tmp_path / "refused")
    overrides = based(tmp_path, "old.pt", tokens=tokens, resize=resize)
    assert problems(recipe, overrides) == []
    [out] = exported(run_project(load_recipe(recipe, overrides), tmp_path / "run").folder).values()
    assert out.shape == (tokens, 32)
    assert torch.equal(out[: min(3, tokens)], vectors()[: min(3, tokens)])


def test_an_encoder_without_base_vectors_starts_from_the_initial_text(tmp_path):
    recipe = make_project(tmp_path, "sdxl")
    save_file({"clip_g": vectors(width=40)}, tmp_path / "old.safetensors")
    folder = run_project(load_recipe(recipe, based(tmp_path)), tmp_path / "run").folder
    out = exported(folder)
    assert torch.equal(out["clip_g"], vectors(width=40))
    assert out["clip_l"].shape == (3, 24)
    assert "no vectors for clip_l; these start from the initial text" in (folder / "manifest.json").read_text("utf-8")


@pytest.mark.parametrize(
    ("tensors", "changes", "message"),
    [
        (
            {"<a>": vectors(1, 768)[0], "<b>": vectors(1, 768)[0]},
            {},
            "contains '<a>', '<b>'; choose one with base_name",
        ),
        (
            {"<a>": vectors(1, 768)[0], "<b>": vectors(1, 768)[0]},
            {"base_name": "<c>"},
            "has no embedding '<c>'; it has '<a>', '<b>'",
        ),
        ({"t5": vectors(1, 4096)}, {}, "has vectors for t5, and this model's encoders are clip_l"),
        ({"something": torch.zeros(3, 3, 3)}, {}, "old.safetensors"),
        (None, {}, "old.safetensors"),
    ],
)
def test_check_reports_invalid_bases(tmp_path, tensors, changes, message):
    recipe = make_project(tmp_path)
    if tensors is not None:
        save_file(tensors, tmp_path / "old.safetensors")
    [text] = problems(recipe, based(tmp_path, **changes))
    assert message in text


def test_base_options_need_a_base(tmp_path):
    recipe = make_project(tmp_path)
    assert problems(recipe, ["embedding.resize=cut"]) == ["resize has no effect without base; remove it or set base"]
