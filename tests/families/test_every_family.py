"""Whole runs on tiny models of every shape: every stage runs, every encoder's vectors move, every export is there."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from projects import BUILD, SIDES, before_eject, family_name, make_project, run_project, runnable

from pivotune.converters.families import families
from pivotune.converters.programs import programs
from pivotune.converters.safetensors_file import read
from pivotune.pipeline.errors import StageError
from pivotune.pipeline.models.denoisers import DENOISERS
from pivotune.pipeline.models.load import load_model
from pivotune.pipeline.recipe.load import load_recipe
from pivotune.pipeline.run.samples import inject_files, lora_loaded

CPU = torch.device("cpu")
PROMPT = "a photo of <cat>, at night"
TARGETS = {
    "sd2": ["a1111", "comfyui", "diffusers", "kohya"],
    "sdxl": ["a1111", "comfyui", "diffusers", "kohya"],
    "sd3": ["a1111", "comfyui", "diffusers", "onetrainer"],
    "sd3-without-t5": ["a1111", "comfyui", "diffusers"],
    "flux": ["comfyui", "onetrainer"],
    "flux-schnell": ["comfyui", "onetrainer"],
    "chroma": ["comfyui", "onetrainer"],
    "pixart": ["comfyui", "diffusers", "onetrainer"],
    "z-image": ["comfyui", "diffusers"],
    "flux2-klein-4b": ["comfyui", "diffusers"],
    "flux2-dev": ["comfyui", "diffusers"],
    "sana": ["diffusers", "onetrainer"],
    "lumina2": ["comfyui", "diffusers"],
    "qwen-image": ["comfyui", "diffusers"],
    "krea2": ["comfyui", "diffusers"],
    "hidream": ["comfyui", "diffusers", "onetrainer"],
    "hunyuan-video": ["comfyui", "diffusers", "onetrainer"],
    "wan": ["comfyui", "diffusers"],
    "anima": ["comfyui", "diffusers"],
    "cascade": ["comfyui", "diffusers", "onetrainer"],
}
WIDTHS = {
    "sd2": {"clip_h": 32}, "sdxl": {"clip_l": 24, "clip_g": 40}, "sd3": {"clip_l": 24, "clip_g": 40, "t5": 72},
    "sd3-without-t5": {"clip_l": 24, "clip_g": 40}, "flux": {"clip_l": 24, "t5": 32},
    "flux-schnell": {"clip_l": 24, "t5": 32}, "chroma": {"t5": 32}, "pixart": {"t5": 32},
    "z-image": {"qwen3_4b": 16}, "flux2-klein-4b": {"qwen3_4b": 16}, "flux2-dev": {"mistral3_24b": 16},
    "sana": {"gemma": 8}, "lumina2": {"gemma": 8}, "qwen-image": {"qwen25_7b": 16}, "krea2": {"qwen3vl_4b": 16},
    "hidream": {"clip_l": 24, "clip_g": 40, "t5": 32, "llama": 32}, "hunyuan-video": {"llama": 16, "clip_l": 24},
    "wan": {"umt5xxl": 32}, "anima": {"qwen3_06b": 16}, "cascade": {"clip_g": 40},
}  # fmt: skip
TRAIN = "preserve_norm = { low = 0.001, high = 1000.0 }\nlora = { rank = 2, learning_rate = 0.01 }\nflip = true"
RESCALE = '[[stage]]\nkind = "rescale"\nto = { low = 0.001, high = 1000.0 }'


def run(folder: Path, family: str, **parts: str) -> dict:
    targets = f"targets = {json.dumps(TARGETS[family])}"
    run_project(make_project(folder, family, **{"export": targets, **parts}), folder / "run")
    return json.loads((folder / "run" / "manifest.json").read_text("utf-8"))


@pytest.mark.parametrize("family", runnable(TARGETS))
def test_every_stage_with_embeddings_and_lora(tmp_path, monkeypatch, family):
    trained: dict[str, torch.Tensor] = {}
    before_eject(monkeypatch, lambda state, model: trained.update(prompt_states(state, model)))
    manifest = run(tmp_path, family, train=f"resolution = {SIDES.get(family, 16)}\n{TRAIN}", stages=RESCALE)
    assert manifest["status"] == "finished"
    proofs = manifest["proofs"]
    assert all(proofs["vocabulary_unchanged"].values())
    assert proofs["vocabulary_unchanged"].keys() == WIDTHS[family].keys()
    assert proofs["exports_verified"] == proofs["exports_declared"] >= len(TARGETS[family]) + 2
    [embedding] = manifest["embeddings"]
    assert {key: len(one["distance"]) for key, one in embedding["encoders"].items()}.keys() == WIDTHS[family].keys()
    assert all(way > 0 for one in embedding["encoders"].values() for way in one["distance"])
    drawn = not families()[family_name(family)].decoder
    assert sum(image["when"] == "after" for image in manifest["images"]) == drawn
    script = tmp_path / "run" / "exports" / "diffusers" / "load.py"
    if script.is_file():
        torch.testing.assert_close(states_after(script, family), trained["states"], rtol=1e-5, atol=1e-5)


@torch.no_grad()
def prompt_states(state, model) -> dict[str, torch.Tensor]:
    if state.injection is None:
        return {}
    state.injection.activate([PROMPT])
    return {"states": DENOISERS[model.family.denoiser_kind].encode(model.pipe, [PROMPT]).states}


@torch.no_grad()
def states_after(script: Path, family: str) -> torch.Tensor:
    """The states of a prompt after the lines of an exported load.py, up to the one that draws."""
    lines = script.read_text("utf-8").splitlines()
    drawing = next(number for number, line in enumerate(lines) if line.startswith(("image = ", "made = ")))
    names = {"__file__": str(script)}
    exec("\n".join(lines[:drawing]), names)
    return DENOISERS[families()[family_name(family)].denoiser_kind].encode(names["pipe"], [PROMPT]).states


@pytest.mark.parametrize("family", ["sd3", "sd3-without-t5"])
def test_sd3_embeddings_are_verified_and_change_the_encoded_prompt(tmp_path, family):
    run(tmp_path, family)
    exports = tmp_path / "run" / "exports"
    tensors, _ = read(exports / "tiny_embeddings" / "cat.safetensors")
    names = {"t5": "t5xxl"}
    assert {name: raw.shape[1] for name, raw in tensors.items()} == {
        names.get(key, key): width for key, width in WIDTHS[family].items()
    }
    model = load_model(load_recipe(tmp_path / "recipe.toml").model, CPU)
    encode = DENOISERS[model.family.denoiser_kind].encode
    before = encode(model.pipe, ["a photo of <cat>"])
    injection = inject_files(model, {"<cat>": exports / "tiny_embeddings" / "cat.safetensors"})
    injection.activate(["a photo of <cat>"])
    after = encode(model.pipe, ["a photo of <cat>"])
    injection.eject()
    again = encode(model.pipe, ["a photo of <cat>"])
    clip = slice(0, 77)
    assert not torch.equal(before.states[:, clip], after.states[:, clip])
    assert torch.equal(before.states[:, 77:], after.states[:, 77:]) == (family == "sd3-without-t5")
    assert torch.equal(before.states, again.states)
    assert torch.equal(before.pooled, again.pooled)


def test_sd3_prompts_match_its_pipeline():
    pipe = BUILD["sd3"]()
    pipe.text_encoder_3.eval()  # drops values while it trains
    text = DENOISERS["joint_transformer"].encode(pipe, ["a red ring", ""])
    states, _, pooled, _ = pipe.encode_prompt(["a red ring", ""], None, None, do_classifier_free_guidance=False)
    assert text.states.requires_grad
    assert torch.equal(text.states, states)
    assert torch.equal(text.pooled, pooled)


def test_ejecting_restores_both_tables_of_t5(tmp_path):
    recipe = make_project(tmp_path, "sd3", export='targets = ["comfyui"]')
    model = load_model(load_recipe(recipe).model, CPU)
    t5 = model.pipe.text_encoder_3
    before = (t5.shared, t5.encoder.embed_tokens)
    run_project(recipe, tmp_path / "run")
    file = tmp_path / "run" / "exports" / "tiny_embeddings" / "cat.safetensors"
    injection = inject_files(model, {"<cat>": file})
    assert t5.encoder.embed_tokens is t5.shared is not before[0]
    injection.eject()
    assert (t5.shared, t5.encoder.embed_tokens) == before
    assert t5.shared.weight is t5.encoder.embed_tokens.weight
    assert isinstance(model.pipe, StableDiffusion3Pipeline)


def one_encoder(folder: Path, family: str, encoders: str, export: str) -> dict:
    recipe = make_project(folder, family, export=export)
    text = recipe.read_text("utf-8").replace('kind = "inject"', f'kind = "inject"\nencoders = {encoders}')
    recipe.write_text(text, "utf-8")
    run_project(recipe, folder / "run")
    return json.loads((folder / "run" / "manifest.json").read_text("utf-8"))


@pytest.mark.parametrize("key", ["clip_l", "clip_g"])
def test_an_embedding_for_one_encoder_of_sdxl_is_exported_for_supported_programs(tmp_path, key):
    manifest = one_encoder(tmp_path, "sdxl", f'["{key}"]', 'targets = ["comfyui"]')
    assert manifest["status"] == "finished"
    [embedding] = manifest["embeddings"]
    assert list(embedding["encoders"]) == [key]
    other = "clip_g" if key == "clip_l" else "clip_l"
    assert any(other in text and "no effect" in text for text in manifest["warnings"]), manifest["warnings"]
    tensors, _ = read(tmp_path / "run" / "exports" / "comfyui" / "cat.safetensors")
    assert list(tensors) == [key]


def test_a_program_that_needs_both_encoders_is_an_error_for_an_embedding_with_one(tmp_path):
    with pytest.raises(StageError, match="AUTOMATIC1111 web UI would not load it"):
        one_encoder(tmp_path, "sdxl", '["clip_g"]', 'targets = ["a1111"]')


def test_a_frozen_encoder_keeps_the_initial_vectors_and_every_program_reads_the_embedding(tmp_path):
    manifest = run(tmp_path, "sdxl", embedding="learning_rate = { clip_l = 0.0, clip_g = 1e-2 }")
    [embedding] = manifest["embeddings"]
    assert set(embedding["encoders"]["clip_l"]["distance"]) == {0.0}
    assert all(way > 0 for way in embedding["encoders"]["clip_g"]["distance"])


@pytest.mark.parametrize("family", ["sd2", "sdxl", "sd3"])
def test_a_finetuned_model_of_every_family_can_be_loaded(tmp_path, family):
    """What was exported is loaded by this program itself, from the folder and from the file where there is one."""
    parts = ["denoiser", list(WIDTHS[family])[-1]]
    train = f"[stage.finetune]\nparts = {json.dumps(parts)}\nlearning_rate = 1e-3"
    export = 'model_dtype = "float32"\ntargets = ["comfyui"]'
    manifest = run(tmp_path, family, train=train, export=export)
    exports = tmp_path / "run" / "exports"
    assert any("ignore the projection" in text for text in manifest["warnings"]) == (family == "sd3")
    spec = load_recipe(tmp_path / "recipe.toml").model
    folder = load_model(replace(spec, base=str(exports / "tiny_model")), CPU)
    before = load_model(spec, CPU)
    tuned = {folder.family.denoiser_module, folder.encoders[-1].module_name}
    for name, part in modules(folder.pipe).items():
        same = all(torch.equal(one, getattr(before.pipe, name).state_dict()[key]) for key, one in part.items())
        assert same == (name not in tuned), name
    file = replace(spec, base=str(exports / "tiny_model.safetensors"), config=str(exports / "tiny_model"))
    again = modules(load_model(file, CPU).pipe)
    for name, part in modules(folder.pipe).items():
        for key, one in part.items():
            lost = family == "sd3" and (name, key) == ("text_encoder", "text_projection.weight")
            assert torch.equal(one, again[name][key]) != lost, (name, key)


def modules(pipe) -> dict[str, dict[str, torch.Tensor]]:
    return {name: part.state_dict() for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)}


@pytest.mark.parametrize("dora", [False, True])
def test_diffusers_with_the_exported_lora_matches_the_trained_model(tmp_path, monkeypatch, dora):
    """On the denoiser and on one of SDXL's encoders, with an alpha that is not the rank."""
    answers = {}
    before_eject(monkeypatch, lambda state, model: answers.setdefault("trained", answer(model)))
    lora = f'parts = ["denoiser", "clip_g"]\nrank = 3\nalpha = 2\ndora = {json.dumps(dora)}\nlearning_rate = 0.05'
    run(tmp_path, "sdxl", train=f"[stage.lora]\n{lora}")
    fresh = load_model(load_recipe(tmp_path / "recipe.toml").model, CPU)
    by_base_model = answer(fresh)
    fresh.pipe.load_lora_weights(tmp_path / "run" / "exports" / "diffusers", weight_name="tiny_lora.safetensors")
    torch.testing.assert_close(answer(fresh), answers["trained"], rtol=1e-5, atol=1e-5)
    assert (by_base_model - answers["trained"]).abs().max() > 1e-3


def answer(model) -> torch.Tensor:
    denoiser = DENOISERS[model.family.denoiser_kind]
    with torch.no_grad():
        text = denoiser.encode(model.pipe, ["a red ring"])
        noisy = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
        return denoiser.predict(model.pipe, noisy, torch.tensor([500]), text)


@pytest.mark.parametrize("family", ["sd3", "flux", "chroma", "pixart", "z-image"])
def test_a_lora_on_t5_or_qwen_keeps_the_names_of_its_layers_and_is_in_the_images_after_training(
    tmp_path, monkeypatch, family
):
    """These encoders have no level `text_model`, and diffusers' loaders fail at their LoRAs or ignore them."""
    states_of = {}
    before_eject(monkeypatch, lambda state, model: states_of.setdefault("trained", states(model)))
    key = list(WIDTHS[family])[-1]
    run(tmp_path, family, train=f'resolution = 16\n[stage.lora]\nparts = ["{key}"]\nrank = 2\nlearning_rate = 0.05')
    file = tmp_path / "run" / "exports" / "tiny.safetensors"
    assert all("_layers_" in name if key == "qwen3_4b" else "_encoder_block_" in name for name in read(file)[0])
    assert not any("text_model" in name for name in read(file)[0])
    fresh = load_model(load_recipe(tmp_path / "recipe.toml").model, CPU)
    base = states(fresh)
    with lora_loaded(fresh, file):
        torch.testing.assert_close(states(fresh), states_of["trained"], rtol=1e-5, atol=1e-5)
    assert torch.equal(states(fresh), base)
    assert (base - states_of["trained"]).abs().max() > 1e-3


@torch.no_grad()
def states(model) -> torch.Tensor:
    return DENOISERS[model.family.denoiser_kind].encode(model.pipe, ["a red ring"]).states


def test_a1111_gets_an_sd3_lora_with_the_names_of_its_loader(tmp_path, monkeypatch):
    export = 'targets = ["a1111"]'
    run(tmp_path, "sd3", train="lora = { rank = 2 }", export=export)
    tensors, _ = read(tmp_path / "run" / "exports" / "a1111" / "tiny.safetensors")
    assert all(name.count(".") >= 2 for name in tensors)
    assert {name for name in tensors if name.startswith("bundle_emb.")} == {
        f"bundle_emb.<cat>.{key}" for key in WIDTHS["sd3"]
    }
    monkeypatch.setitem(programs(), "a1111", replace(programs()["a1111"], lora_layouts={}))
    with pytest.raises(StageError, match="two dots in every name"):
        run_project(tmp_path / "recipe.toml", tmp_path / "again")
