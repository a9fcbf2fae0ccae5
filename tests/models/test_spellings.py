"""Single files with other names, and those that lack parts, are loaded bit for bit or refused with what is missing."""

import json
import re
import shutil
from dataclasses import replace

import pytest
import torch
from huggingface_hub import errors
from models.folders import assert_same_weights, hub_answer, load, rewrite, spec_of
from models.single_file import single_file
from projects import make_project, run_project
from safetensors.torch import save_file
from tiny import tiny_flux, tiny_sd, tiny_sd2, tiny_sdxl

from pivotune.converters.families import families
from pivotune.pipeline.checks.recipe import check_recipe
from pivotune.pipeline.errors import StageError
from pivotune.pipeline.models.checkpoint import checkpoint_family, tensor_shapes
from pivotune.pipeline.models.parts import find_part
from pivotune.pipeline.models.spellings import lacking, renamed
from pivotune.pipeline.recipe.load import load_recipe
from pivotune.pipeline.run.replay import replay
from pivotune.pipeline.stages import STAGES

UNET, VAE = "model.diffusion_model.", "first_stage_model."
NEWER = {"q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0", "norm": "group_norm"}
OLDER = {"q": "query", "k": "key", "v": "value", "proj_out": "proj_attn", "norm": "group_norm"}


def without_level(state):
    """Names of CLIP as in NovelAI's files."""
    made = {name.replace("transformer.text_model.", "transformer."): one for name, one in state.items()}
    assert made.keys() != state.keys()
    return made


def vae_attention(state, table):
    def name_of(name):
        found = re.fullmatch(r"(.+mid\.attn_1\.)(\w+)\.(\w+)", name)
        return f"{found[1]}{table[found[2]]}.{found[3]}" if found else name

    made = {name_of(name): one for name, one in state.items()}
    assert made.keys() != state.keys()
    return made


def matrices(state):
    return {name: one[:, :, 0, 0] if "mid.attn_1" in name and one.ndim == 4 else one for name, one in state.items()}


def only(state, *prefixes):
    return {name: one for name, one in state.items() if name.startswith(prefixes)}


def saved(path, state):
    if path.suffix == ".ckpt":
        torch.save({"state_dict": state, "step": 1}, path)
    else:
        save_file({name: one.contiguous() for name, one in state.items()}, path)
    return path


CHANGES = {
    "clip": without_level,
    "newer vae": lambda state: vae_attention(state, NEWER),
    "newer vae with matrices": lambda state: matrices(vae_attention(state, NEWER)),
    "older vae": lambda state: vae_attention(state, OLDER),
    "all": lambda state: vae_attention(without_level(state), NEWER),
}


@pytest.mark.parametrize("ending", ["safetensors", "ckpt"])
@pytest.mark.parametrize("change", CHANGES)
def test_other_names_of_the_same_weights(tmp_path, folder, family, original, change, ending):
    path = saved(tmp_path / f"m.{ending}", CHANGES[change](single_file(original)))
    assert_same_weights(load(path, family, config=str(folder)).pipe, original)


def test_other_names_in_float16(tmp_path, sdxl_folder, originals):
    pipe = originals["sdxl"][0]
    path = saved(tmp_path / "m.safetensors", CHANGES["all"](single_file(pipe)))
    model = load(path, "sdxl", "float16", config=str(sdxl_folder))
    assert torch.equal(model.pipe.vae.decoder.conv_in.weight, pipe.vae.decoder.conv_in.weight)
    for mine, theirs in zip(model.pipe.text_encoder.parameters(), pipe.text_encoder.parameters(), strict=True):
        assert torch.equal(mine, theirs.half())


@pytest.mark.parametrize("bare", [False, True])
def test_a_file_with_only_the_unet_takes_the_rest_from_the_config(tmp_path, folder, family, original, bare):
    state = only(single_file(original), UNET)
    if bare:
        state = {name.removeprefix(UNET): one for name, one in state.items()}
    model = load(saved(tmp_path / "m.safetensors", state), family, config=str(folder))
    assert_same_weights(model.pipe, original)
    assert model.parts == {name: folder / name for name in families()[family].checkpoint if name != "unet"}


def test_parts_are_taken_from_where_the_recipe_says(tmp_path, folder, family, original):
    other = {"sd1": tiny_sd, "sdxl": tiny_sdxl}[family](7)
    other.save_pretrained(tmp_path / "other")
    path = saved(tmp_path / "m.safetensors", only(single_file(original), UNET))
    for name in ("vae", "text_encoder"):
        shutil.rmtree(folder / name / "x", ignore_errors=True)
        for weights in (folder / name).glob("*.safetensors"):
            weights.unlink()
    file = saved(tmp_path / "vae.safetensors", only(single_file(other), VAE))
    model = load(path, family, config=str(folder), vae=str(file), text_encoder=str(tmp_path / "other"))
    for name, pipe in (("unet", original), ("vae", other), ("text_encoder", other)):
        mine, theirs = getattr(model.pipe, name).state_dict(), getattr(pipe, name).state_dict()
        assert all(torch.equal(one, theirs[key]) for key, one in mine.items()), name
    if family == "sdxl":
        assert model.parts["text_encoder_2"] == folder / "text_encoder_2"


@pytest.mark.parametrize("spelling", ["diffusers", "original", "of newer diffusers"])
def test_a_vae_of_a_file_replaces_that_of_a_folder(tmp_path, sd1_folder, spelling):
    other = tiny_sd(7)
    state = {"diffusers": dict(other.vae.state_dict())}
    state["original"] = {name.removeprefix(VAE): one for name, one in only(single_file(other), VAE).items()}
    state["of newer diffusers"] = vae_attention(state["original"], NEWER)
    file = saved(tmp_path / "vae.safetensors", state[spelling])
    model = load(sd1_folder, vae=str(file), config=str(sd1_folder))
    assert all(torch.equal(one, model.pipe.vae.state_dict()[key]) for key, one in other.vae.state_dict().items())
    assert not torch.equal(model.pipe.unet.conv_in.weight, other.unet.conv_in.weight)


@pytest.mark.parametrize("level", ["text_model.", "", "cond_stage_model.transformer.text_model."])
def test_a_text_encoder_of_a_file(tmp_path, sd1_folder, level):
    other = tiny_sd(7).text_encoder.state_dict()
    state = {level + name.removeprefix("text_model."): one for name, one in other.items()}
    model = load(sd1_folder, text_encoder=str(saved(tmp_path / "clip.safetensors", state)), config=str(sd1_folder))
    for mine, theirs in zip(model.pipe.text_encoder.state_dict().values(), other.values(), strict=True):
        assert torch.equal(mine, theirs)


def project_of_file(tmp_path, state, more=""):
    recipe = make_project(tmp_path)
    saved(tmp_path / "m.safetensors", state)
    text = recipe.read_text("utf-8").replace('base = "model"', f'base = "m.safetensors"\nconfig = "model"\n{more}')
    recipe.write_text(text, "utf-8")
    return recipe


def remove_weights(tmp_path, name):
    for file in (tmp_path / "model" / name).glob("*.safetensors"):
        file.unlink()


@pytest.mark.parametrize(("name", "title"), [("vae", "VAE"), ("text_encoder", r"text encoder \(text_encoder\)")])
def test_check_and_loading_say_what_a_file_lacks(tmp_path, name, title):
    prefix = families()["sd1"].checkpoint[name].prefix
    state = {key: one for key, one in single_file(tiny_sd()).items() if not key.startswith(prefix)}
    recipe = project_of_file(tmp_path, state)
    assert not check_recipe(recipe).failed
    remove_weights(tmp_path, name)
    expected = rf"m.safetensors has no {title}; set model.{name} to a folder, hub id or file of one, or model.config to"
    [problem] = [one.text for one in check_recipe(recipe).problems if one.severity == "error"]
    assert re.match(expected, problem)
    with pytest.raises(StageError, match=expected):
        load(tmp_path / "m.safetensors", config=str(tmp_path / "model"))


def test_a_file_that_is_no_model(tmp_path):
    recipe = project_of_file(tmp_path, only(single_file(tiny_sd()), VAE))
    [problem] = [one.text for one in check_recipe(recipe).problems if one.severity == "error"]
    assert problem.startswith("m.safetensors has no denoiser (names that start with model.diffusion_model.)")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ('text_encoder_2 = "owner/name"', "text_encoder_2 does not apply to Stable Diffusion 1"),
        ('vae = "owner"', "'owner' is not a file, a folder or a hub id"),
        ('vae = "./none"', "does not exist"),
        ('vae = "images"', "is no VAE: no config.json there or in vae"),
    ],
)
def test_check_of_parts(tmp_path, line, expected):
    recipe = make_project(tmp_path, model=line)
    [problem] = [one.text for one in check_recipe(recipe).problems if one.severity == "error"]
    assert expected in problem


def test_a_part_of_another_model_is_refused(tmp_path, sd1_folder):
    file = saved(tmp_path / "vae.safetensors", only(single_file(tiny_sd()), UNET))
    with pytest.raises(StageError, match=r"model.vae = .*vae.safetensors' cannot be loaded: ") as caught:
        load(sd1_folder, vae=str(file), config=str(sd1_folder))
    assert "\n" not in str(caught.value)
    clip = saved(tmp_path / "clip.safetensors", {"text_model.final_layer_norm.bias": torch.zeros(32)})
    with pytest.raises(StageError, match=r"model.text_encoder = .* text_encoder lacks \d+ of its \d+ weights"):
        load(sd1_folder, text_encoder=str(clip), config=str(sd1_folder))
    rewrite(sd1_folder, "vae", lambda state: {name: one for name, one in state.items() if "mid_block" not in name})
    with pytest.raises(StageError, match=r"model.vae = .* cannot be loaded: it lacks \d+ of its \d+ weights"):
        load(sd1_folder, vae=str(sd1_folder))


def test_the_manifest_has_hashes_of_parts_and_replay_compares_them(tmp_path):
    state = without_level(only(single_file(tiny_sd()), UNET, "cond_stage_model."))
    recipe = project_of_file(tmp_path, state, 'vae = "vae.safetensors"')
    file = saved(tmp_path / "vae.safetensors", only(single_file(tiny_sd(7)), VAE))
    run_project(recipe, tmp_path / "run")
    facts = json.loads((tmp_path / "run" / "manifest.json").read_text("utf-8"))["model"]
    assert facts["sha256"].keys() == {"m.safetensors", "vae/vae.safetensors"}
    moved = tmp_path / "elsewhere" / "vae.safetensors"
    moved.parent.mkdir()
    shutil.move(file, moved)
    asked = {"progress": lambda text: None, "bar": False, "overrides": [f"model.vae={moved}"]}
    again = replay(tmp_path / "run", STAGES, out=tmp_path / "again", **asked)
    assert not again.differences
    assert not again.inputs
    saved(moved, only(single_file(tiny_sd(8)), VAE))
    other = replay(tmp_path / "run", STAGES, out=tmp_path / "other", **asked)
    assert any("vae/vae.safetensors" in one or "model" in one for one in other.inputs)


def test_names_of_usual_files_stay(family, original):
    names = list(single_file(original))
    assert renamed(names, families()[family]) == {}
    assert lacking(names, families()[family]) == []


@pytest.mark.parametrize(("width", "family"), [(768, "sd1"), (1024, "sd2"), (2048, "sdxl"), (32, None)])
def test_the_family_of_a_file_with_only_the_unet_is_known_by_its_width(tmp_path, width, family):
    name = f"{UNET}input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight"
    assert checkpoint_family(saved(tmp_path / "m.safetensors", {name: torch.zeros(1, width)})) == family
    short = {name.removeprefix(UNET): torch.zeros(1, width)}
    assert checkpoint_family(saved(tmp_path / "n.safetensors", short)) == family


def test_stable_diffusion_2_as_converted_from_a_folder_of_transformers_5(tmp_path):
    """Its OpenCLIP encoder has the names and the prefix of Stable Diffusion 1's."""
    pipe = tiny_sd2()
    pipe.save_pretrained(tmp_path / "model")
    path = saved(tmp_path / "m.safetensors", without_level(single_file(pipe)))
    model = load(path, "sd2", config=str(tmp_path / "model"))
    assert_same_weights(model.pipe, pipe)
    assert model.parts == {}
    wide = {f"{UNET}x.attn2.to_k.weight": torch.zeros(1, 1024), "cond_stage_model.transformer.x": torch.zeros(1)}
    assert checkpoint_family(saved(tmp_path / "wide.safetensors", wide)) == "sd2"


def test_a_finetune_of_a_file_in_other_names_is_exported_in_the_usual_ones(tmp_path):
    recipe = project_of_file(tmp_path, CHANGES["all"](single_file(tiny_sd())))
    text = recipe.read_text("utf-8").replace(
        'kind = "export"', 'kind = "export"\nmodel = ["file"]\nmodel_dtype = "float32"'
    )
    text = text.replace("steps = 3", "steps = 1\nfinetune = { layers = 'attention' }")
    recipe.write_text(text, "utf-8")
    run_project(recipe, tmp_path / "run")
    [made] = (tmp_path / "run" / "exports").glob("*_model.safetensors")
    assert tensor_shapes(made) == {name: tuple(one.shape) for name, one in single_file(tiny_sd()).items()}


def test_a_file_with_only_the_transformer_of_flux(tmp_path):
    pipe = tiny_flux()
    pipe.save_pretrained(tmp_path / "model")
    path = saved(tmp_path / "m.safetensors", dict(pipe.transformer.state_dict()))
    config = str(tmp_path / "model")
    model = load(path, "flux", config=config)
    assert_same_weights(model.pipe, pipe)
    assert model.parts == {name: tmp_path / "model" / name for name in ("vae", "text_encoder", "text_encoder_2")}
    remove_weights(tmp_path, "text_encoder_2")
    expected = r"m.safetensors has no text encoder \(text_encoder_2\); set model.text_encoder_2 to a folder"
    with pytest.raises(StageError, match=expected):
        load(path, "flux", config=config)
    state = dict(pipe.text_encoder_2.state_dict())
    del state["encoder.embed_tokens.weight"]  # the same as `shared.weight`, which such files have alone
    encoder = saved(tmp_path / "t5.safetensors", state)
    assert_same_weights(load(path, "flux", config=config, text_encoder_2=str(encoder)).pipe, pipe)
    remove_weights(tmp_path, "vae")
    with pytest.raises(StageError, match=r"m.safetensors has no VAE; set model.vae to a folder, hub id or file of one"):
        load(path, "flux", config=config, text_encoder_2=str(encoder))


def test_a_spec_keeps_its_parts(tmp_path):
    recipe = make_project(tmp_path, model='vae = "model"\ntext_encoder = "owner/name"')
    spec = load_recipe(recipe).model
    assert (spec.vae, spec.text_encoder, spec.text_encoder_2) == (str(tmp_path / "model"), "owner/name", None)
    assert replace(spec, vae=None) != spec
    assert spec_of("x", vae="y").vae == "y"


@pytest.mark.parametrize("alone", [True, False])
def test_a_part_of_the_hub_is_downloaded_alone(tmp_path, sd1_folder, monkeypatch, alone):
    asked = []

    def config_file(name, file, **_):
        if not alone:
            raise hub_answer(errors.RemoteEntryNotFoundError, 404)
        return str(sd1_folder / "vae" / file)

    def snapshot(name, allow_patterns, **_):
        asked.append((name, allow_patterns))
        return str(sd1_folder / "vae" if alone else sd1_folder)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", config_file)
    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    monkeypatch.setattr("pivotune.pipeline.models.parts.hub_reachable", lambda spec: True)
    assert find_part(spec_of(sd1_folder, vae="owner/name"), "vae") == sd1_folder / "vae"
    inside = "" if alone else "vae/"
    assert asked == [("owner/name", [f"{inside}*.json", f"{inside}*.safetensors"])]


def test_a_part_of_the_hub_that_cannot_be_had(tmp_path, sd1_folder, monkeypatch):
    def fail(*args, **options):
        raise hub_answer(errors.GatedRepoError, 403)

    monkeypatch.setattr("pivotune.pipeline.models.parts.hub_reachable", fail)
    with pytest.raises(StageError, match=r"^model.vae = 'owner/name': its terms must be accepted on the hub"):
        find_part(spec_of(sd1_folder, vae="owner/name"), "vae")
