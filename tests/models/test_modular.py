"""Anima is a modular pipeline: found, checked and loaded by its own index, and drawn with by its own rules."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub import errors
from projects import make_project
from tiny_llm import tiny_anima

from pivotune.converters.families import families
from pivotune.pipeline.checks.recipe import check_recipe
from pivotune.pipeline.embeddings.injection import EmbeddingRows, Injection
from pivotune.pipeline.errors import StageError
from pivotune.pipeline.models.denoisers import DENOISERS
from pivotune.pipeline.models.find import find_model
from pivotune.pipeline.models.index import MODULAR, plain_index
from pivotune.pipeline.models.load import load_model, quiet_libraries, skeleton
from pivotune.pipeline.models.modular import package_problem
from pivotune.pipeline.models.tokenizers import load_tokenizers, token_limits
from pivotune.pipeline.recipe.model import ModelSpec
from pivotune.pipeline.run.drawing import draw_images

CPU = torch.device("cpu")
HUB = "someone/anima"
NO_TORCHVISION = package_problem(families()["anima"], None)


def spec_of(base: Path | str) -> ModelSpec:
    return ModelSpec(str(base), "anima", "float32", None, None, None)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    quiet_libraries()
    folder = tmp_path_factory.mktemp("anima") / "model"
    tiny_anima().save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "model"))


def change_index(folder: Path, **entries: Any) -> None:
    index = json.loads((folder / MODULAR).read_text("utf-8"))
    (folder / MODULAR).write_text(json.dumps(index | entries), "utf-8")


def entry(folder: Path, name: str) -> list[Any]:
    found: list[Any] = json.loads((folder / MODULAR).read_text("utf-8"))[name]
    return found


def test_a_folder_is_loaded_with_all_weights(saved: Path) -> None:
    model, original = load_model(spec_of(saved), CPU), tiny_anima()
    for name in ("transformer", "text_conditioner", "text_encoder", "vae"):
        theirs = getattr(original, name).state_dict()
        assert all(torch.equal(one, theirs[key]) for key, one in getattr(model.pipe, name).state_dict().items())
    assert (model.resolution, model.size_multiple, model.pixels_per_latent) == (1024, 4, 2)
    assert model.tokenizer_files.keys() == {"tokenizer", "t5_tokenizer"}
    assert skeleton(spec_of(saved)).size == model.size
    assert token_limits(model.family, load_tokenizers(spec_of(saved))) == {"qwen3_06b": 512}


def test_a_part_is_never_loaded_from_elsewhere(folder: Path) -> None:
    """A modular index says where each part is; only the model's own folder is read."""
    library, kind, source = entry(folder, "t5_tokenizer")
    elsewhere = source | {"pretrained_model_name_or_path": "someone/else", "revision": "v1"}
    change_index(folder, t5_tokenizer=[library, kind, elsewhere])
    assert load_model(spec_of(folder), CPU).pipe.t5_tokenizer is not None
    shutil.rmtree(folder / "t5_tokenizer")
    with pytest.raises(StageError, match="it has no folder t5_tokenizer; save the whole pipeline"):
        load_model(spec_of(folder), CPU)


def test_an_index_with_other_folders_or_without_a_part_is_refused(folder: Path) -> None:
    library, kind, source = entry(folder, "vae")
    change_index(folder, vae=[library, kind, source | {"subfolder": "../vae"}])
    with pytest.raises(StageError, match=r"modular_model_index\.json: vae is in the folder '../vae', which must be"):
        load_model(spec_of(folder), CPU)
    change_index(folder, vae=[library, kind, source], text_conditioner=[None, None, {}])
    with pytest.raises(StageError, match="it has no text_conditioner, which the pipeline of Anima needs"):
        load_model(spec_of(folder), CPU)
    change_index(folder, text_conditioner=["evil", "Code", {"type_hint": ["evil", "Code"]}])
    with pytest.raises(StageError, match="text_conditioner must be a class of diffusers or transformers"):
        load_model(spec_of(folder), CPU)


def test_an_entry_that_was_saved_without_its_part_has_the_class_of_its_hint() -> None:
    hint = {"type_hint": ["diffusers", "VAE"], "subfolder": "vae"}
    assert plain_index({"vae": [None, None, hint], "x": 1}) == {"vae": ["diffusers", "VAE"], "x": 1}


def test_a_hub_id_gives_the_snapshot_of_its_parts(monkeypatch: pytest.MonkeyPatch, saved: Path) -> None:
    asked: list[Any] = []

    def one_file(name: str, file: str, **options: Any) -> str:
        asked.append(file)
        if not (saved / file).is_file():
            raise errors.LocalEntryNotFoundError("not there")
        return str(saved / file)

    def snapshot(name: str, *, allow_patterns: list[str], **options: Any) -> str:
        asked.append((name, sorted(allow_patterns), options))
        return str(saved)

    monkeypatch.setattr(huggingface_hub, "model_info", lambda *a, **o: None)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", one_file)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    monkeypatch.setitem(sys.modules, "torchvision", sys.modules["json"])
    assert find_model(spec_of(HUB)) == saved
    parts = ["scheduler", "t5_tokenizer", "text_conditioner", "text_encoder", "tokenizer", "transformer", "vae"]
    options = {"revision": None, "local_files_only": False}
    assert asked == ["model_index.json", MODULAR, (HUB, [MODULAR, *(f"{name}/*" for name in parts)], options)]


def test_without_torchvision_check_and_loading_say_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    recipe = make_project(tmp_path, "anima", export="targets = []")
    assert check_recipe(recipe).problems == []
    config = tmp_path / "model" / "transformer" / "config.json"
    config.write_text(config.read_text("utf-8").replace('"concat_padding_mask": false', '"concat_padding_mask": true'))
    monkeypatch.setitem(sys.modules, "torchvision", None)
    wanted = r"Anima needs torchvision, which is not installed; pip install 'pivotune\[anima\]'"
    [problem] = check_recipe(recipe).problems
    assert problem.key == "model.base"
    assert re.search(wanted, problem.text)
    with pytest.raises(StageError, match=wanted):
        load_model(spec_of(tmp_path / "model"), CPU)
    problems = check_recipe(recipe, [f"model.base={HUB}"]).problems
    assert [one.severity for one in problems if re.search(wanted, one.text)] == ["warning"]

    def broken(name: str) -> Any:
        raise RuntimeError("operator torchvision::nms does not exist\nsecond line")

    monkeypatch.setattr("pivotune.pipeline.models.modular.importlib.import_module", broken)
    why = package_problem(families()["anima"], {"concat_padding_mask": True})
    assert why.endswith("cannot be imported (operator torchvision::nms does not exist); install the one for your torch")
    assert package_problem(families()["anima"], {"concat_padding_mask": False}) == ""


def test_a_single_file_is_refused_with_what_is_needed(tmp_path: Path) -> None:
    file = tmp_path / "anima.safetensors"
    file.write_bytes(b"")
    wanted = r"a file has only a part of Anima; use a hub id \(circlestone-labs/.*\) or a diffusers folder"
    with pytest.raises(StageError, match=wanted):
        load_model(spec_of(file), CPU)


@pytest.mark.skipif(bool(NO_TORCHVISION), reason=NO_TORCHVISION)
def test_the_padding_mask_of_the_real_denoiser_says_that_nothing_is_padding() -> None:
    pipe = tiny_anima(padding=True)
    seen: list[torch.Tensor] = []
    pipe.transformer.register_forward_pre_hook(lambda *a: seen.append(a[2]["padding_mask"]), with_kwargs=True)
    latents = torch.randn(1, 4, 8, 12, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        text = DENOISERS["anima_transformer"].encode(pipe, ["a red ring"])
        DENOISERS["anima_transformer"].predict(pipe, latents, torch.tensor([500.0]), text)
    pipe(prompt="a red ring", num_inference_steps=1, height=16, width=24)
    assert all(torch.equal(one, seen[0]) for one in seen)
    assert seen[0].shape == (1, 1, 16, 24)


def test_images_are_drawn_with_the_guidance_and_without_a_progress_bar(
    saved: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = load_model(spec_of(saved), CPU)

    def drawn(guidance: float) -> list[bytes]:
        generators = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
        images = draw_images(model, ["a red ring"] * 2, 2, guidance, 16, generators)
        return [image.tobytes() for image in images]

    first = drawn(1.0)
    assert first == drawn(1.0)
    assert first != drawn(5.0)
    assert len(set(first)) == 2
    assert "%" not in capfd.readouterr().err


def test_each_vector_is_an_unknown_token_for_the_second_tokenizer(saved: Path) -> None:
    """Whatever the embedding is called: its name says nothing to the model."""
    model = load_model(spec_of(saved), CPU)
    vectors = torch.randn(3, 16, generator=torch.Generator().manual_seed(1))
    plain, t5 = model.pipe.t5_tokenizer("a plain text").input_ids, model.pipe.t5_tokenizer
    found = {}
    for name in ("<cat>", "my thing"):
        rows = {"qwen3_06b": EmbeddingRows({name: vectors})}
        injection = Injection(model.pipe, model.encoders, rows)
        injection.activate([f"a {name}, red"])
        ids = model.pipe.t5_tokenizer(f"a {name}, red").input_ids
        assert ids == t5("a <unk><unk><unk>, red").input_ids
        assert ids.count(t5.unk_token_id) == 3
        assert model.pipe.t5_tokenizer("a plain text").input_ids == plain
        with torch.no_grad():
            found[name] = DENOISERS["anima_transformer"].encode(model.pipe, [f"a {name}, red"]).states
        with injection.suspended():
            assert model.pipe.t5_tokenizer is t5
        assert model.pipe.t5_tokenizer is not t5
        injection.eject()
        assert model.pipe.t5_tokenizer is t5
    assert torch.equal(found["<cat>"], found["my thing"])
