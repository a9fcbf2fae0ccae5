"""Output embeddings: trained vectors replace the encoder's output, and OneTrainer's files hold them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from projects import before_eject, make_project, run_project

from pivotune.converters.safetensors_file import read
from pivotune.pipeline.checks.recipe import check_recipe
from pivotune.pipeline.errors import StageError
from pivotune.pipeline.models.denoisers import DENOISERS
from pivotune.pipeline.models.load import load_model
from pivotune.pipeline.recipe.load import load_recipe
from pivotune.pipeline.run import outcome
from pivotune.pipeline.run.samples import inject_files
from pivotune.pipeline.tensors import from_raw
from pivotune.pipeline.train import loop

CPU = torch.device("cpu")
PROMPT = "a photo of <cat>, at night"
NAMES = {  # of the tensors in the standalone file
    "sd1": {"emp_params", "emp_params_out"},
    "sdxl": {"clip_l", "clip_l_out", "clip_g", "clip_g_out"},
    "sd3": {"clip_l", "clip_l_out", "clip_g", "clip_g_out", "t5", "t5_out"},
    "flux": {"clip_l", "t5", "t5_out"},
    "chroma": {"t5", "t5_out"},
    "pixart": {"t5", "t5_out"},
    "sana": {"gemma", "gemma_out"},
    "hunyuan-video": {"llama", "llama_out", "clip_l"},
    "hidream": {"clip_l", "clip_g", "t5", "t5_out", "llama"},
}


def project(folder: Path, family: str, **parts: str) -> Path:
    side = 32 if family == "sana" else 16
    given = {"embedding": "output = true\ntokens = 3", "export": 'targets = ["onetrainer"]'} | parts
    return make_project(folder, family, **given, train=f"resolution = {side}")


@torch.no_grad()
def states_of(model, prompt: str = PROMPT) -> torch.Tensor:
    return DENOISERS[model.family.denoiser_kind].encode(model.pipe, [prompt]).states


@pytest.mark.parametrize("family", NAMES)
def test_an_output_embedding_is_trained_exported_and_loaded(tmp_path, monkeypatch, family):
    trained: dict[str, torch.Tensor] = {}

    def look(state, model):
        if state.injection is not None:
            state.injection.activate([PROMPT])
            trained["states"] = states_of(model)

    before_eject(monkeypatch, look)
    recipe = project(tmp_path, family)
    run_project(recipe, tmp_path / "run")
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text("utf-8"))
    [embedding] = manifest["embeddings"]
    assert all(way > 0 for one in embedding["encoders"].values() for way in one["distance"])
    exports = tmp_path / "run" / "exports"
    for file in (exports / "tiny_embeddings" / "cat.safetensors", exports / "onetrainer" / "cat.safetensors"):
        tensors, _ = read(file)
        assert tensors.keys() == NAMES[family]
        for name in tensors:
            if f"{name}_out" in tensors:
                assert not from_raw(tensors[name]).any()
                assert from_raw(tensors[f"{name}_out"]).any()
    model = load_model(load_recipe(recipe).model, CPU)
    before = states_of(model)
    injection = inject_files(model, {"<cat>": exports / "tiny_embeddings" / "cat.safetensors"})
    injection.activate([PROMPT])
    torch.testing.assert_close(states_of(model), trained["states"], rtol=1e-6, atol=1e-6)
    with injection.suspended():
        assert torch.equal(states_of(model), before)
    torch.testing.assert_close(states_of(model), trained["states"], rtol=1e-6, atol=1e-6)
    injection.eject()
    assert torch.equal(states_of(model), before)


def test_the_trained_vectors_stand_in_the_states_of_the_placeholder(tmp_path):
    recipe = project(tmp_path, "chroma")
    run_project(recipe, tmp_path / "run")
    file = tmp_path / "run" / "exports" / "tiny_embeddings" / "cat.safetensors"
    vectors = from_raw(read(file)[0]["t5_out"])
    model = load_model(load_recipe(recipe).model, CPU)
    injection = inject_files(model, {"<cat>": file})
    injection.activate([PROMPT])
    states = states_of(model)[0]
    first = next(at for at in range(len(states)) if torch.allclose(states[at], vectors[0]))
    torch.testing.assert_close(states[first : first + 3], vectors)


def test_the_encoder_needs_no_backward_pass(tmp_path):
    recipe = project(tmp_path, "chroma")
    run_project(recipe, tmp_path / "run")
    model = load_model(load_recipe(recipe).model, CPU)
    file = tmp_path / "run" / "exports" / "tiny_embeddings" / "cat.safetensors"
    injection = inject_files(model, {"<cat>": file})
    active = injection.activate([PROMPT], train=True)
    inside: list[bool] = []
    model.pipe.text_encoder.encoder.block[-1].register_forward_hook(
        lambda module, inputs, output: inside.append((output[0] if isinstance(output, tuple) else output).requires_grad)
    )
    states = DENOISERS[model.family.denoiser_kind].encode(model.pipe, [PROMPT]).states
    assert inside == [False]
    assert states.requires_grad
    states.square().sum().backward()
    assert all(bool(row.any()) for row in active["t5"].leaf.grad)


def test_it_is_continued_from_a_file_of_onetrainer(tmp_path):
    run_project(project(tmp_path / "first", "chroma"), tmp_path / "run")
    file = tmp_path / "run" / "exports" / "onetrainer" / "cat.safetensors"
    kept = f'output = true\nbase = "{file}"\nlearning_rate = {{ t5 = 0.0 }}'
    run_project(project(tmp_path / "again", "chroma", embedding=kept), tmp_path / "second")
    first, second = (read(path)[0] for path in (file, tmp_path / "second/exports/onetrainer/cat.safetensors"))
    assert torch.equal(from_raw(first["t5_out"]), from_raw(second["t5_out"]))


@pytest.mark.parametrize(
    ("family", "parts", "text"),
    [
        ("sd1", {"export": 'targets = ["a1111"]'}, "cannot use output embeddings; only OneTrainer can"),
        ("sd1", {"export": 'files = "one"\ntargets = []'}, "output embeddings are written with files = 'each' only"),
        ("sd1", {"embedding": 'output = true\npreserve_norm = "median"'}, "not of an encoder's output"),
        ("z-image", {"export": "targets = []"}, "no program knows output embeddings for Z-Image"),
    ],
)
def test_what_an_output_embedding_cannot_have_is_found_beforehand(tmp_path, family, parts, text):
    found = check_recipe(project(tmp_path, family, **parts))
    assert found.failed
    assert any(text in problem.text for problem in found.problems), [one.text for one in found.problems]


def test_an_embedding_that_stops_is_written_at_once_as_at_the_end(tmp_path, monkeypatch):
    monkeypatch.setattr(outcome, "remove_finished", lambda folder: None)
    recipe = project(tmp_path, "sd1", embedding='output = true\ntokens = 3\nstop_after = "1 step"')
    run_project(recipe, tmp_path / "run")
    files = [*(tmp_path / "run").rglob("cat.safetensors")]
    assert {part for file in files for part in file.parts} >= {"finished", "exports"}
    assert all(read(file)[0].keys() == NAMES["sd1"] for file in files)


def test_a_failed_run_keeps_them_as_output_embeddings(tmp_path, monkeypatch):
    true_loss = loop.mean_loss
    losses = iter([1.0, 1.0, float("nan")])
    monkeypatch.setattr(loop, "mean_loss", lambda *arguments: true_loss(*arguments) * next(losses))
    with pytest.raises(StageError, match="the loss at step 3 is nan"):
        run_project(project(tmp_path, "sd1"), tmp_path / "run")
    tensors, _ = read(tmp_path / "run" / "last-good" / "tiny_embeddings" / "cat.safetensors")
    assert tensors.keys() == NAMES["sd1"]


def test_a_warm_start_takes_no_input_vectors_for_an_output_embedding(tmp_path):
    first = run_project(project(tmp_path / "first", "chroma", embedding="tokens = 3"), tmp_path / "run").folder
    messages: list[str] = []
    second = project(tmp_path / "second", "chroma")
    run_project(second, tmp_path / "again", source=first, progress=messages.append)
    assert any("nothing fits" in line for line in messages), messages


def test_the_guard_does_not_hold_them_against_the_vocabulary(tmp_path):
    recipe = project(tmp_path, "chroma", more="")
    guard = "guard = { norm = 'stop', norm_band = { low = 0.99, high = 1.01 } }"
    text = recipe.read_text("utf-8").replace("steps = 3", f"steps = 3\n{guard}")
    recipe.write_text(text, "utf-8")
    run_project(recipe, tmp_path / "run")
