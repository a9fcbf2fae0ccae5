"""Embeddings for one of several text encoders: the check reports programs that cannot load them."""

import pytest
from projects import make_project

from pivotune.converters.families import families
from pivotune.converters.programs import NAMES, programs
from pivotune.pipeline.checks.embeddings import refusal
from pivotune.pipeline.checks.recipe import check_recipe


def why(program, family, chosen):
    found, kind = programs()[program], families()[family]
    return refusal(found, found.layouts[family], kind, chosen)


@pytest.mark.parametrize("chosen", [["clip_l"], ["clip_g"]])
@pytest.mark.parametrize("program", NAMES)
def test_only_programs_with_comfyuis_loader_load_an_sdxl_embedding_for_one_encoder(program, chosen):
    assert (why(program, "sdxl", chosen) == "") == (program in ("comfyui", "swarmui", "fooocus"))


@pytest.mark.parametrize("program", ["a1111", "comfyui", "invokeai", "kohya"])
def test_every_program_loads_an_embedding_for_all_encoders(program):
    assert why(program, "sdxl", ["clip_l", "clip_g"]) == ""


def findings(folder, inject, export):
    recipe = make_project(folder, "sdxl", export=export)
    text = recipe.read_text("utf-8").replace('kind = "inject"', f'kind = "inject"\nencoders = {inject}')
    recipe.write_text(text, "utf-8")
    return [problem.text for problem in check_recipe(recipe).problems if problem.severity == "error"]


def test_targets_that_cannot_load_the_embeddings_are_errors(tmp_path):
    found = findings(tmp_path, ["clip_g"], 'targets = ["a1111", "comfyui"]')
    assert len(found) == 1
    assert "AUTOMATIC1111 web UI cannot load an embedding with vectors for clip_g only" in found[0]


def test_an_unknown_encoder_is_an_error(tmp_path):
    [found] = findings(tmp_path, ["clip_h", "clip_l", "clip_g"], 'targets = ["a1111"]')
    assert "Stable Diffusion XL has no text encoder 'clip_h'; did you mean 'clip_" in found
