"""Programs as targets for LoRAs: what check, HOW-TO.txt and load.py say of parts that a program does not load."""

import json

import pytest
import torch
from projects import before_eject, make_project, run_project
from random_lora import deltas_of

from pivotune.converters.safetensors_file import read
from pivotune.pipeline.checks.recipe import check_recipe
from pivotune.pipeline.train.lora import ADAPTER

LORA = "[stage.lora]\nparts = {}\nrank = 2\nlearning_rate = 0.05"


def project(folder, family, targets, parts=("denoiser",)):
    train = f"resolution = {32 if family == 'sana' else 16}\n{LORA.format(json.dumps(list(parts)))}"
    return make_project(folder, family, train=train, export=f"targets = {json.dumps(targets)}")


def problems(recipe):
    return [(problem.severity, problem.text) for problem in check_recipe(recipe).problems]


@pytest.mark.parametrize("family", ["z-image", "hunyuan-video", "pixart"])
def test_load_py_gives_the_pipeline_the_lora_of_all_parts(tmp_path, family, monkeypatch):
    parts = {"z-image": "qwen3_4b", "hunyuan-video": "clip_l", "pixart": "t5"}
    trained = {}

    def look(state, model):
        for attribute in model.family.lora_prefixes:
            for name, delta in deltas_of(getattr(model.pipe, attribute), ADAPTER).items():
                trained.setdefault(f"{attribute}.{name}", delta)

    before_eject(monkeypatch, look)
    recipe = project(tmp_path, family, ["diffusers"], ["denoiser", parts[family]])
    run_project(recipe, tmp_path / "run")
    folder = tmp_path / "run" / "exports" / "diffusers"
    lines = (folder / "load.py").read_text("utf-8").partition("\nimage = ")[0]
    scope = {"__file__": str(folder / "load.py")}
    exec(lines, scope)
    pipe, found = scope["pipe"], {}
    for attribute in ("transformer", "text_encoder", "text_encoder_2"):
        for name, layer in getattr(pipe, attribute, torch.nn.Module()).named_modules():
            for adapter in getattr(layer, "lora_A", {}):
                found[f"{attribute}.{name}"] = layer.get_delta_weight(adapter)
    assert found.keys() == trained.keys()
    for name, delta in found.items():
        torch.testing.assert_close(delta, trained[name], rtol=1e-5, atol=1e-5)
    how = (folder / "HOW-TO.txt").read_text("utf-8")
    assert "load.py adds tiny_lora_parts.safetensors, for which the pipeline has no loader." in how
    assert "load.py loads everything:" in how
    assert ("pipe.load_lora_weights reads" in how) == (family != "pixart")


def test_a_program_that_uses_no_embeddings_of_the_family_gets_the_lora(tmp_path):
    recipe = project(tmp_path, "qwen-image", ["comfyui"])
    [(severity, text)] = problems(recipe)
    assert severity == "warning"
    assert "no embeddings folder; comfyui/ will have the LoRA alone" in text
    run_project(recipe, tmp_path / "run")
    folder = tmp_path / "run" / "exports" / "comfyui"
    assert sorted(path.name for path in folder.iterdir()) == ["HOW-TO.txt", "tiny_lora.safetensors"]
    assert all(name.startswith("transformer.") for name in read(folder / "tiny_lora.safetensors")[0])
    how = (folder / "HOW-TO.txt").read_text("utf-8")
    assert "no embeddings folder; those of this run are in ../tiny_embeddings." in how


def test_without_a_lora_such_a_target_is_an_error(tmp_path):
    recipe = make_project(tmp_path, "qwen-image", export='targets = ["comfyui"]')
    assert [severity for severity, _ in problems(recipe)] == ["error"]


def test_a_program_without_models_of_the_family_is_no_target(tmp_path):
    found = problems(project(tmp_path, "sana", ["comfyui"], ["denoiser", "gemma"]))
    assert [severity for severity, _ in found] == ["error"]


def test_check_and_the_files_say_which_text_encoder_is_left_out(tmp_path):
    recipe = project(tmp_path, "hidream", ["swarmui", "comfyui"], ["denoiser", "llama", "clip_l"])
    assert problems(recipe) == [
        ("warning", "SwarmUI does not apply a LoRA of the text encoder llama and clip_l of HiDream-I1; "
                    "train the denoiser alone for it")
    ]  # fmt: skip
    run_project(recipe, tmp_path / "run")
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text("utf-8"))
    [text] = [text for text in manifest["warnings"] if "not applied" in text]
    assert text.startswith("SwarmUI: 16 of ")
    exports = tmp_path / "run" / "exports"
    assert text in (exports / "swarmui" / "HOW-TO.txt").read_text("utf-8")
    assert "not applied" not in (exports / "comfyui" / "HOW-TO.txt").read_text("utf-8")
