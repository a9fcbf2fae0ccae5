"""A single file says itself of which family it is and what it predicts; training, plan and exports go by that."""

import json

import pytest
import torch
from models.folders import load
from models.single_file import single_file
from projects import make_project, run_project
from safetensors.torch import load_file, save_file
from tiny import tiny_sdxl

from pivotune.converters.safetensors_file import read
from pivotune.pipeline.checks.plan import make_plan
from pivotune.pipeline.checks.plan_text import plan_text
from pivotune.pipeline.checks.recipe import check_recipe
from pivotune.pipeline.models.checkpoint import checkpoint_family, stated_prediction
from pivotune.pipeline.models.tokenizers import load_tokenizers
from pivotune.pipeline.recipe.load import load_recipe

MARKS = {"v_pred": torch.empty(0), "ztsnr": torch.empty(0)}


@pytest.fixture(scope="module")
def state():
    return single_file(tiny_sdxl())


def written(path, state, metadata=None, **tensors):
    save_file(state | tensors, path, metadata or {})
    return path


@pytest.mark.parametrize(
    ("tensors", "metadata", "yaml", "kind", "zero_snr", "source"),
    [
        (MARKS, {}, "", "v_prediction", True, "the tensor v_pred of m.safetensors"),
        ({"v_pred": torch.empty(0)}, {}, "", "v_prediction", False, "the tensor v_pred of m.safetensors"),
        (MARKS, {"modelspec.prediction_type": "epsilon"}, "", "v_prediction", True, "the tensor v_pred"),
        (
            {},
            {"modelspec.prediction_type": "v"},
            "",
            "v_prediction",
            False,
            "modelspec.prediction_type in the metadata",
        ),
        ({}, {"modelspec.prediction_type": "epsilon"}, "", "epsilon", False, "modelspec.prediction_type"),
        ({}, {}, 'model:\n  params:\n    parameterization: "v"\n', "v_prediction", False, "in m.yaml"),
        ({}, {"modelspec.prediction_type": "epsilon"}, "parameterization: v", "epsilon", False, "metadata"),
    ],
)
def test_what_a_file_says_of_its_prediction(tmp_path, tensors, metadata, yaml, kind, zero_snr, source):
    path = written(tmp_path / "m.safetensors", {"one": torch.ones(1)}, metadata, **tensors)
    if yaml:
        path.with_suffix(".yaml").write_text(yaml, "utf-8")
    found = stated_prediction(path)
    assert (found.kind, found.zero_snr) == (kind, zero_snr)
    assert source in found.source


@pytest.mark.parametrize("content", [b"", b"parameterization: ", b"\xff\xfe"])
def test_a_file_that_says_nothing(tmp_path, content):
    path = written(tmp_path / "m.safetensors", {"one": torch.ones(1)})
    path.with_suffix(".yaml").write_bytes(content)
    assert stated_prediction(path) is None
    assert checkpoint_family(path) is None
    (tmp_path / "broken.safetensors").write_bytes(content)
    assert (
        stated_prediction(tmp_path / "broken.safetensors") is checkpoint_family(tmp_path / "broken.safetensors") is None
    )


def test_a_file_is_loaded_as_what_it_says(tmp_path, state, sdxl_folder):
    plain = load(written(tmp_path / "e.safetensors", state), None, config=str(sdxl_folder))
    assert plain.family.name == "sdxl"
    assert plain.pipe.scheduler.config.prediction_type == "epsilon"
    marked = load(written(tmp_path / "v.safetensors", state, **MARKS), None, config=str(sdxl_folder))
    config = marked.pipe.scheduler.config
    assert (config.prediction_type, config.rescale_betas_zero_snr) == ("v_prediction", True)
    assert config.timestep_spacing == "trailing"


def test_a_finetune_of_a_marked_file_and_its_lora_say_the_same(tmp_path, state):
    path = make_project(
        tmp_path,
        "sdxl",
        export='targets = []\nmodel = ["file"]\nmodel_dtype = "float32"',
        train="finetune = { layers = 'attention' }",
    )
    metadata = {"modelspec.author": "somebody", "modelspec.hash_sha256": "0xold", "modelspec.title": "old"}
    file = written(tmp_path / "noob.safetensors", state, metadata, **MARKS)
    text = path.read_text("utf-8").replace('base = "model"\nfamily = "sdxl"', f'base = "{file}"\nconfig = "model"')
    path.write_text(text, "utf-8")
    recipe = load_recipe(path)
    assert not check_recipe(path).failed
    expected = (
        "The model predicts the velocity (v-prediction) with zero terminal SNR (the tensor v_pred of noob.safetensors)"
    )
    assert expected in plan_text(make_plan(recipe, load_tokenizers(recipe.model)))
    folder = run_project(recipe, tmp_path / "run").folder
    facts = json.loads((folder / "manifest.json").read_text("utf-8"))["model"]
    assert facts["prediction"] == {
        "kind": "v_prediction", "zero_terminal_snr": True, "stated_by": "the tensor v_pred of noob.safetensors",
    }  # fmt: skip
    [made] = (folder / "exports").glob("*_model.safetensors")
    tensors, after = read(made)
    assert tensors.keys() == state.keys() | MARKS.keys()
    assert any(not torch.equal(one, state[name]) for name, one in load_file(made).items() if name in state)
    assert after["modelspec.author"] == "somebody"
    assert after["modelspec.prediction_type"] == "v"
    assert after["modelspec.title"] != "old"
    assert after["modelspec.hash_sha256"] != "0xold"


def test_a_lora_says_what_its_model_predicts(tmp_path, state):
    path = make_project(tmp_path, "sdxl", export="targets = []", train="lora = { rank = 2, learning_rate = 0.01 }")
    file = written(tmp_path / "noob.safetensors", state, **MARKS)
    for base, expected in (('base = "model"', "epsilon"), (f'base = "{file}"\nconfig = "model"', "v")):
        recipe = tmp_path / f"{expected}.toml"
        recipe.write_text(path.read_text("utf-8").replace('base = "model"', base), "utf-8")
        made = run_project(recipe, tmp_path / expected).folder / "exports" / "tiny.safetensors"
        assert read(made)[1]["modelspec.prediction_type"] == expected


def test_a_single_file_of_stable_cascade_is_refused_by_check(tmp_path, state):
    recipe = make_project(tmp_path)
    file = written(tmp_path / "stage_c.safetensors", {"one": torch.ones(1)})
    text = recipe.read_text("utf-8").replace('base = "model"\nfamily = "sd1"', f'base = "{file}"\nfamily = "cascade"')
    recipe.write_text(text, "utf-8")
    found = [one.text for one in check_recipe(recipe).problems if one.key == "model.base"]
    assert [one.startswith("a file has only a part of Stable Cascade") for one in found] == [True], found
