"""Stable Cascade's image encoder and decoder, which are no parts of its prior's pipeline."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError, RemoteEntryNotFoundError
from models.folders import hub_answer
from PIL import Image
from projects import NO_TORCHVISION, make_project, run_project
from safetensors.torch import load_file, save_file
from tiny import image_encoder_file, tiny_cascade_decoder

from pivotune.converters.families import families
from pivotune.pipeline import effnet
from pivotune.pipeline.checks.recipe import check_recipe
from pivotune.pipeline.data.cache import vae_identity
from pivotune.pipeline.errors import StageError
from pivotune.pipeline.models import companions
from pivotune.pipeline.models.companions import find_image_encoder, read_image_encoder, stated_image_encoder
from pivotune.pipeline.models.family import choose_family
from pivotune.pipeline.recipe.model import ModelSpec
from pivotune.pipeline.run.diff import input_differences
from pivotune.pipeline.run.replay import replay
from pivotune.pipeline.stages import STAGES
from pivotune.pipeline.vae import encode_image, normalization

CPU = torch.device("cpu")
EXPORT = 'targets = ["comfyui"]'
FAMILY = families()["cascade"]
ABOUT = FAMILY.image_encoder
with_torchvision = pytest.mark.skipif(NO_TORCHVISION is not None, reason=str(NO_TORCHVISION))


def spec_of(base: Any, **changes: Any) -> ModelSpec:
    return replace(ModelSpec(str(base), "cascade", "float32", None, None, None), **changes)


@with_torchvision
def test_latents_are_those_of_the_backbone_at_three_quarters_of_the_size() -> None:
    """A grey image, which scaling does not change: 128x256 pixels are 96x192 for the backbone, 3x6 latents."""
    encoder = read_image_encoder(image_encoder_file(), CPU)
    given: list[torch.Tensor] = []
    encoder.backbone.register_forward_pre_hook(lambda module, inputs: given.append(inputs[0]))
    mean, deviation = encode_image(encoder, torch.full((3, 128, 256), 0.2))
    assert mean.shape == (16, 3, 6)
    assert not deviation.any()
    [seen] = given
    assert seen.shape == (1, 3, 96, 192)
    expected = [(0.6 - 0.485) / 0.229, (0.6 - 0.456) / 0.224, (0.6 - 0.406) / 0.225]  # 0.2 of -1..1 is 0.6 of 0..1
    torch.testing.assert_close(seen[0, :, 50, 100], torch.tensor(expected), rtol=1e-4, atol=1e-5)
    weights = load_file(str(image_encoder_file()))
    features = encoder.backbone(seen)
    projected = torch.einsum("oc,bchw->bohw", weights["mapper.0.weight"][:, :, 0, 0], features)
    scale = (weights["mapper.1.running_var"] + 1e-5).rsqrt()
    by_hand = (projected - weights["mapper.1.running_mean"].reshape(1, -1, 1, 1)) * scale.reshape(1, -1, 1, 1)
    torch.testing.assert_close(mean, by_hand[0], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(normalization(encoder)(mean[None]), mean[None])  # the prior is trained on these


@with_torchvision
def test_weights_have_the_names_of_the_published_file() -> None:
    names = load_file(str(image_encoder_file())).keys()
    assert {"backbone.0.0.weight", "backbone.7.1.running_var", "mapper.0.weight", "mapper.1.running_mean"} < names
    assert "mapper.1.weight" not in names


@with_torchvision
def test_the_cache_of_latents_depends_on_the_weights_and_the_scaling(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = read_image_encoder(image_encoder_file(), CPU)
    first = vae_identity(encoder)
    encoder.mapper[1].running_mean += 1e-3
    second = vae_identity(encoder)
    encoder.config = encoder.config | {"image_scale": (1, 1)}
    assert len({one["vae"] for one in (first, second, vae_identity(encoder))}) == 3


@with_torchvision
@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda weights: weights | {"mapper.1.weight": torch.ones(16)}, "of Wuerstchen 2"),
        (lambda weights: {"x": torch.ones(1)}, "Missing key"),
    ],
)
def test_a_file_of_something_else_is_an_error(tmp_path: Path, change: Any, says: str) -> None:
    save_file(change(load_file(str(image_encoder_file()))), str(tmp_path / "x.safetensors"))
    with pytest.raises(StageError, match=says) as caught:
        read_image_encoder(tmp_path / "x.safetensors", CPU)
    assert "\n" not in str(caught.value)


def test_the_file_is_looked_for_where_the_recipe_says_then_beside_the_model_then_on_the_hub(tmp_path: Path) -> None:
    for folder in ("model", "other"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "effnet_encoder.safetensors").touch()
    other = tmp_path / "other"
    assert ABOUT is not None
    for named in (other, other / "effnet_encoder.safetensors"):
        spec = spec_of(tmp_path / "model", image_encoder=str(named))
        assert stated_image_encoder(spec, ABOUT) == other / "effnet_encoder.safetensors"
    found = stated_image_encoder(spec_of(tmp_path / "model"), ABOUT)
    assert found == tmp_path / "model" / "effnet_encoder.safetensors"
    assert stated_image_encoder(spec_of("owner/prior"), ABOUT) == "stabilityai/stable-cascade"
    assert stated_image_encoder(spec_of(tmp_path / "model", image_encoder="owner/own"), ABOUT) == "owner/own"
    with pytest.raises(StageError, match=r"has no effnet_encoder.safetensors; set model.image_encoder"):
        stated_image_encoder(spec_of(tmp_path), ABOUT)
    with pytest.raises(StageError, match="does not exist"):
        stated_image_encoder(spec_of(tmp_path, image_encoder=str(tmp_path / "none")), ABOUT)


def test_a_file_of_the_hub_is_downloaded_or_the_error_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def download(repo: str, file: str, **options: Any) -> str:
        asked.append((repo, file, options))
        if repo == "owner/without":
            raise hub_answer(RemoteEntryNotFoundError, 404)
        if options["local_files_only"]:
            raise LocalEntryNotFoundError("none")
        return "/cache/effnet_encoder.safetensors"

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(companions, "hub_reachable", lambda spec: True)
    assert ABOUT is not None
    assert find_image_encoder(spec_of("owner/prior"), ABOUT) == Path("/cache/effnet_encoder.safetensors")
    assert asked == [("stabilityai/stable-cascade", "effnet_encoder.safetensors", {"local_files_only": False})]
    with pytest.raises(StageError, match=r"'owner/without': it has no effnet_encoder.safetensors"):
        find_image_encoder(spec_of("owner/prior", image_encoder="owner/without"), ABOUT)
    monkeypatch.setattr(companions, "hub_reachable", lambda spec: False)
    with pytest.raises(StageError, match=r"model.image_encoder = 'stabilityai/stable-cascade': it is not complete"):
        find_image_encoder(spec_of("owner/prior"), ABOUT)


@pytest.mark.parametrize("broken", [False, True])
def test_without_a_usable_torchvision_check_says_so_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: bool
) -> None:
    recipe = make_project(tmp_path, "cascade", model='image_encoder = "owner/own"', export=EXPORT)
    if broken:
        (tmp_path / "torchvision").mkdir()
        (tmp_path / "torchvision" / "__init__.py").write_text(
            'raise RuntimeError("operator torchvision::nms does not exist")', "utf-8"
        )
        monkeypatch.syspath_prepend(tmp_path)
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            monkeypatch.delitem(sys.modules, name)
    else:
        monkeypatch.setattr(effnet, "find_spec", lambda name: None)
    problems = [problem for problem in check_recipe(recipe).problems if problem.severity == "error"]
    [text] = [problem.text for problem in problems]
    assert text.startswith("the image encoder of Stable Cascade needs torchvision")
    assert ("does not exist" in text) == broken
    assert ("pip install 'pivotune[cascade]'" in text) != broken
    assert "\n" not in text
    with pytest.raises(StageError, match="needs torchvision"):
        read_image_encoder(tmp_path / "x.safetensors", CPU)


@pytest.mark.parametrize(
    ("parts", "says"),
    [
        ({"more": "[samples]\nprompts = ['a <cat>']"}, "samples.prompts: Stable Cascade draws images only with its"),
        ({"train": "watch = { sample_every = '1 steps' }"}, "sample_every: Stable Cascade draws images only with"),
        ({"model": "dtype = 'float16'"}, "the denoiser of Stable Cascade overflows in float16; use bfloat16"),
        ({"model": "decoder = './none'"}, "is not a diffusers folder: no model_index.json"),
        ({"model": "decoder = 'x y'"}, "'x y' is not a file, a folder or a hub id"),
        ({"train": "objective = { weighting = 'cosmap' }"}, "cosmap is not supported for a model whose time is a"),
        ({"train": "objective = { prediction = 'sample' }"}, "prediction does not apply to a model whose time is"),
        ({"train": "timesteps = { shift = 'dynamic' }"}, "'dynamic' is not supported for a model whose time is a"),
        ({"train": "timesteps = { low = 1000 }"}, "low = 1000 leaves no timestep below the model's 1000 timesteps"),
        ({"train": "objective = { weighting = 'p2', loss = 'huber' }"}, ""),
    ],
)
def test_check_says_what_does_not_apply(tmp_path: Path, parts: dict[str, str], says: str) -> None:
    if "more" in parts:
        recipe = make_project(tmp_path, "cascade", export=EXPORT)
        text = recipe.read_text("utf-8").replace("[samples]", "[samples]\nprompts = ['a <cat>']")
        recipe.write_text(text, "utf-8")
    else:
        recipe = make_project(tmp_path, "cascade", export=EXPORT, **parts)
    found = [
        f"{problem.key}: {problem.text}"
        for problem in check_recipe(recipe).problems
        if problem.severity == "error" and "torchvision" not in problem.text and "effnet" not in problem.text
    ]
    assert len(found) == bool(says), found
    assert all(says in one for one in found), found


def test_other_families_take_no_image_encoder(tmp_path: Path) -> None:
    recipe = make_project(tmp_path, "sd1", model="image_encoder = 'owner/own'")
    [problem] = [one for one in check_recipe(recipe).problems if one.severity == "error"]
    assert "image_encoder does not apply to Stable Diffusion 1" in problem.text


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("StableCascadeDecoderPipeline", "is only the decoder of Stable Cascade; use the model that is trained, as "),
        ("WuerstchenPriorPipeline", "is a WuerstchenPriorPipeline, which is not supported; supported: "),
    ],
)
def test_another_stage_or_wuerstchen_is_a_clear_error(kind: str, says: str) -> None:
    with pytest.raises(StageError, match=says):
        choose_family(replace(spec_of("x/y"), family=None), kind, 1280)


@with_torchvision
def test_images_are_drawn_with_a_decoder_and_by_the_exported_script(tmp_path: Path) -> None:
    decoder = tmp_path / "decoder"
    tiny_cascade_decoder().save_pretrained(decoder)
    index = json.loads((decoder / "model_index.json").read_text("utf-8"))
    (decoder / "model_index.json").write_text(json.dumps(index | {"vqgan": ["wuerstchen", "PaellaVQModel"]}), "utf-8")
    train = "resolution = 128\nwatch = { sample_every = '2 steps' }"
    model, export = 'decoder = "./decoder"', 'targets = ["diffusers"]'
    recipe = make_project(tmp_path, "cascade", model=model, train=train, export=export)
    run_project(recipe, tmp_path / "run")
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text("utf-8"))
    assert [image["when"] for image in manifest["images"]] == ["before", "after"]
    images = [Image.open(tmp_path / "run" / image["path"]) for image in manifest["images"]]
    assert [image.size for image in images] == [(128, 128)] * 2
    assert images[0].tobytes() != images[1].tobytes()
    script = tmp_path / "run" / "exports" / "diffusers" / "load.py"
    exec(
        script.read_text("utf-8").replace("pipe(prompt=", "pipe(height=128, width=128, prompt="),
        {"__file__": str(script)},
    )
    assert Image.open(script.parent / "try.png").size == (128, 128)
    again = replay(tmp_path / "run", STAGES, out=tmp_path / "again", progress=lambda text: None, bar=False)
    assert not again.differences


@with_torchvision
def test_a_moved_image_encoder_is_no_difference_and_another_one_is(tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.mkdir()
    recipe = make_project(tmp_path, "cascade", model='image_encoder = "./own"', train="resolution = 128", export=EXPORT)
    (tmp_path / "model" / "effnet_encoder.safetensors").rename(own / "effnet_encoder.safetensors")
    run_project(recipe, tmp_path / "run")
    facts = json.loads((tmp_path / "run" / "manifest.json").read_text("utf-8"))["model"]
    assert "image_encoder/effnet_encoder.safetensors" in facts["sha256"]
    moved = own.rename(tmp_path / "moved") / "effnet_encoder.safetensors"
    asked = {"progress": lambda text: None, "bar": False, "overrides": [f"model.image_encoder={moved}"]}
    again = replay(tmp_path / "run", STAGES, out=tmp_path / "again", **asked)
    before, after = (json.loads((tmp_path / name / "manifest.json").read_text("utf-8")) for name in ("run", "again"))
    assert before["recipe"]["model"]["image_encoder"] != after["recipe"]["model"]["image_encoder"]
    assert not input_differences(before, after)
    assert not again.differences
    weights = load_file(str(moved))
    moved.unlink()  # the file is linked from the session's
    save_file(weights | {"mapper.1.running_mean": weights["mapper.1.running_mean"] + 0.1}, str(moved))
    other = replay(tmp_path / "run", STAGES, out=tmp_path / "other", **asked)
    assert any("image_encoder/effnet_encoder.safetensors" in one or "model" in one for one in other.inputs)
    assert other.differences
