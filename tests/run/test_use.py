"""`pivotune.load`: what was trained, in pipelines that users have loaded themselves."""

import copy
import json
import subprocess
import sys
from base64 import b64encode
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusionImg2ImgPipeline
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from projects import SIDES, before_eject, make_project, run_project
from tiny import text_config, tiny_sd, tiny_sdxl
from tiny_llm import tiny_flux2
from transformers import CLIPTextModel, CLIPTextModelWithProjection

import pivotune
from pivotune.converters.embedding import Embedding
from pivotune.converters.errors import ConvertError
from pivotune.converters.families import families
from pivotune.converters.library import read, write
from pivotune.converters.safetensors_file import write as write_safetensors
from pivotune.pipeline.embeddings.injection import EmbeddingRows, Encoder, Injection
from pivotune.pipeline.errors import StageError
from pivotune.pipeline.models.denoisers import DENOISERS
from pivotune.pipeline.tensors import from_raw, to_raw

EXPORT = 'targets = ["comfyui"]'
PROMPT = "a photo of <Cat>, at night"
LORA = "lora = { rank = 2, learning_rate = 0.05 }"
# Every kind of text encoder: CLIP, T5, Gemma, Llama, Qwen and Mistral with their chat templates.
FAMILIES = ["sd1", "sdxl", "flux", "sana", "hidream", "qwen-image", "flux2-dev", "z-image"]


@torch.no_grad()
def encoded(pipe, family: str, prompt: str = PROMPT) -> dict[str, torch.Tensor]:
    text = DENOISERS[families()[family].denoiser_kind].encode(pipe, [prompt])
    return {"states": text.states, **({} if text.pooled is None else {"pooled": text.pooled})}


def everything(pipe) -> dict:
    """All weights of a pipeline by name, its configuration, and the tokens of a prompt."""
    weights = {
        f"{name}.{key}": value.clone()
        for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)
        for key, value in part.state_dict().items()
    }  # fmt: skip
    parts = {name: part for name, part in pipe.components.items() if "tokenizer" in name}
    tokens = {name: (len(part), part(PROMPT).input_ids) for name, part in parts.items()}
    return {"weights": weights, "config": dict(pipe.config), "parts": parts, "tokens": tokens}


def assert_same(one: dict, other: dict) -> None:
    assert one["config"] == other["config"]
    assert one["tokens"] == other["tokens"]
    assert all(part is other["parts"][name] for name, part in one["parts"].items())
    assert one["weights"].keys() == other["weights"].keys()
    assert all(torch.equal(value, other["weights"][key]) for key, value in one["weights"].items())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_run_is_loaded_as_it_was_trained_and_unloaded(tmp_path, monkeypatch, family):
    trained = {}
    before_eject(monkeypatch, lambda state, model: trained.update(states_in_training(state, model, family)))
    lora = LORA if family in ("sd1", "sdxl", "flux") else ""
    train = f"resolution = {SIDES.get(family, 16)}\n{lora}"
    recipe = make_project(
        tmp_path, family, captions="a photo of <Cat>", embedding="tokens = 2", train=train, export=EXPORT
    )
    recipe.write_text(recipe.read_text("utf-8").replace("<cat>", "<Cat>"), "utf-8")
    run_project(recipe, tmp_path / "run")
    pipe = DiffusionPipeline.from_pretrained(tmp_path / "model")
    before, plain = everything(pipe), encoded(pipe, family)

    loaded = pivotune.load(pipe, tmp_path / "run")
    assert loaded.tokens == ("<Cat>",)
    found = encoded(pipe, family)
    for name, states in trained.items():
        torch.testing.assert_close(found[name], states, rtol=1e-5, atol=1e-5)
        assert not torch.equal(found[name], plain[name])
    loaded.unload()
    loaded.unload()
    assert_same(before, everything(pipe))
    assert all(torch.equal(states, plain[name]) for name, states in encoded(pipe, family).items())


def states_in_training(state, model, family) -> dict[str, torch.Tensor]:
    if state.injection is None:
        return {}
    state.injection.activate([PROMPT])
    return encoded(model.pipe, family)


def embedding(name: str, widths: dict[str, int], rows: int = 2, seed: int = 0, **metadata: str) -> Embedding:
    draw = torch.Generator().manual_seed(seed)
    vectors = {key: to_raw(torch.randn(rows, width, generator=draw)) for key, width in widths.items()}
    return Embedding(name, vectors, metadata)


def injected(pipe, family: str, encoders: dict[str, str], found: Embedding) -> dict[str, torch.Tensor]:
    """The prompt with an embedding as training has it in its pipeline."""
    parts = [
        Encoder(
            key, module, module.replace("text_encoder", "tokenizer"), getattr(pipe, module),
            getattr(pipe, module.replace("text_encoder", "tokenizer")), found.vectors[key].shape[1],
        )
        for key, module in encoders.items()
    ]  # fmt: skip
    rows = {one.key: EmbeddingRows({"<cat>": from_raw(found.vectors[one.key])}) for one in parts}
    injection = Injection(pipe, parts, rows)
    injection.activate([PROMPT])
    states = encoded(pipe, family)
    injection.eject()
    return states


@pytest.mark.parametrize("file", ["cat.pt", "cat.safetensors", "cat.png"])
def test_files_of_every_program_reach_the_encoder(tmp_path, file):
    pipe, found = tiny_sd(width=768), embedding("<cat>", {"clip_l": 768})
    expected = injected(pipe, "sd1", {"clip_l": "text_encoder"}, found)
    vectors = from_raw(found.vectors["clip_l"])
    if file.endswith(".pt"):
        torch.save({"string_to_param": {"*": vectors}, "name": "other", "step": 1}, tmp_path / file)
    elif file.endswith(".png"):
        write_image(tmp_path / file, vectors)
    else:
        write([found], "comfyui", tmp_path, family="sd1")
        [written] = tmp_path.glob("*.safetensors")
        written.rename(tmp_path / file)
    with pivotune.load(pipe, tmp_path / file, name="<CAT>") as loaded:
        assert loaded.tokens == ("<CAT>",)
        assert all(torch.equal(states, expected[name]) for name, states in encoded(pipe, "sd1").items())
    assert not torch.equal(encoded(pipe, "sd1")["states"], expected["states"])


def write_image(path: Path, vectors: torch.Tensor) -> None:
    """An image with an embedding in its text, as AUTOMATIC1111 writes it."""
    text = json.dumps({"string_to_param": {"*": {"TORCHTENSOR": vectors.tolist()}}, "name": "cat"})
    info = PngInfo()
    info.add_text("sd-ti-embedding", b64encode(text.encode()).decode())
    Image.new("RGB", (8, 8)).save(path, pnginfo=info)


def test_the_two_files_of_an_sdxl_embedding_are_one(tmp_path):
    pipe = tiny_sdxl()
    pipe.text_encoder = CLIPTextModel(text_config(pipe.tokenizer, 768)).eval()
    pipe.text_encoder_2 = CLIPTextModelWithProjection(text_config(pipe.tokenizer_2, 1280)).eval()
    found = embedding("<cat>", {"clip_l": 768, "clip_g": 1280})
    expected = injected(pipe, "sdxl", {"clip_l": "text_encoder", "clip_g": "text_encoder_2"}, found)
    first, second = write([found], "diffusers", tmp_path, family="sdxl")
    assert first.path.with_stem(f"{first.path.stem}_2") == second.path
    with pivotune.load(pipe, first.path):
        assert all(torch.equal(states, expected[name]) for name, states in encoded(pipe, "sdxl").items())


def test_several_files_are_unloaded_in_any_order(tmp_path):
    pipe = tiny_sd(width=768)
    before, states = everything(pipe), {}
    for seed, name in enumerate(("<cat>", "<dog>")):
        write([embedding(name, {"clip_l": 768}, seed=seed)], "comfyui", tmp_path / name.strip("<>"), family="sd1")
    files = {name: next((tmp_path / name).glob("*.safetensors")) for name in ("cat", "dog")}
    for name, file in files.items():
        with pivotune.load(pipe, file, name=f"<{name}>"):
            states[name] = encoded(pipe, "sd1", f"a <{name}>")["states"]
    cat, dog = (pivotune.load(pipe, file, name=f"<{name}>") for name, file in files.items())
    assert torch.equal(encoded(pipe, "sd1", "a <cat>")["states"], states["cat"])
    assert torch.equal(encoded(pipe, "sd1", "a <dog>")["states"], states["dog"])
    cat.unload()
    assert torch.equal(encoded(pipe, "sd1", "a <dog>")["states"], states["dog"])
    assert not torch.equal(encoded(pipe, "sd1", "a <cat>")["states"], states["cat"])
    dog.unload()
    assert_same(before, everything(pipe))


@torch.no_grad()
def noise_of(pipe) -> torch.Tensor:
    """What the denoiser predicts, which a LoRA on it changes."""
    return pipe.unet(torch.ones(1, 4, 8, 8), 500, torch.ones(1, 77, 768)).sample


def bundle_file(path: Path, seed: int = 0) -> Path:
    """A LoRA on one layer of tiny_sd's U-Net in kohya's layout, with the embedding `cat`."""
    draw = torch.Generator().manual_seed(seed)
    name = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_v"
    tensors = {
        f"{name}.lora_down.weight": torch.randn(2, 768, generator=draw),
        f"{name}.lora_up.weight": torch.randn(16, 2, generator=draw),
        f"{name}.alpha": torch.tensor(1.0),
        f"bundle_emb.cat{seed}.clip_l": torch.randn(2, 768, generator=draw),
    }
    write_safetensors(path, {key: to_raw(value) for key, value in tensors.items()}, {})
    return path


def test_a_bundle_gives_its_embeddings_and_its_lora(tmp_path):
    pipe, file = tiny_sd(width=768), bundle_file(tmp_path / "cat.safetensors")
    before, plain = everything(pipe), noise_of(pipe)
    with pivotune.load(pipe, file, lora=False) as loaded:
        assert (loaded.tokens, loaded.adapter) == (("cat0",), None)
        assert torch.equal(noise_of(pipe), plain)
    with pivotune.load(pipe, file) as loaded:
        assert pipe.get_active_adapters() == [loaded.adapter]
        assert (noise_of(pipe) - plain).abs().max() > 1e-3
    assert torch.equal(noise_of(pipe), plain)
    assert_same(before, everything(pipe))


def test_loras_that_were_there_before_stay(tmp_path):
    pipe, files = tiny_sd(width=768), [bundle_file(tmp_path / f"{seed}.safetensors", seed) for seed in range(3)]
    own = {key: from_raw(raw) for key, raw in read(files[0]).rest.items()}
    pipe.load_lora_weights(own, adapter_name="own")
    pipe.set_adapters("own", 0.5)
    before = noise_of(pipe)
    one, two = (pivotune.load(pipe, file) for file in files[1:])
    both = noise_of(pipe)
    assert set(pipe.get_active_adapters()) == {"own", one.adapter, two.adapter}
    one.unload()
    assert set(pipe.get_active_adapters()) == {"own", two.adapter}
    assert not torch.equal(noise_of(pipe), both)
    two.unload()
    assert torch.equal(noise_of(pipe), before)
    assert pipe.get_list_adapters() == {"unet": ["own"]}


def test_one_of_two_loras_is_unloaded(tmp_path):
    pipe, files = tiny_sd(width=768), [bundle_file(tmp_path / f"{seed}.safetensors", seed) for seed in range(2)]
    before = everything(pipe)
    with pivotune.load(pipe, files[1]):
        alone = noise_of(pipe)
    one, two = (pivotune.load(pipe, file) for file in files)
    one.unload()
    torch.testing.assert_close(noise_of(pipe), alone)
    two.unload()
    assert_same(before, everything(pipe))


def test_pipelines_for_other_tasks_of_the_model(tmp_path):
    made = tiny_sd(width=768)
    pipe = StableDiffusionImg2ImgPipeline(**made.components, requires_safety_checker=False)
    with pivotune.load(pipe, bundle_file(tmp_path / "cat.safetensors"), lora=False) as loaded:
        image = pipe(
            f"a {loaded.tokens[0]}", Image.new("RGB", (16, 16)), num_inference_steps=2, output_type="pt",
            generator=torch.Generator().manual_seed(0),
        ).images  # fmt: skip
    plain = pipe(
        "a cat0", Image.new("RGB", (16, 16)), num_inference_steps=2, output_type="pt",
        generator=torch.Generator().manual_seed(0),
    ).images  # fmt: skip
    assert not torch.equal(image, plain)


class Processor:
    """As FLUX.2's in place of a tokenizer: it reads images too, and has the chat template."""

    image_processor = None

    def __init__(self, tokenizer):
        self.tokenizer = copy.deepcopy(tokenizer)
        self.chat_template, self.tokenizer.chat_template = tokenizer.chat_template, None


def test_a_processor_in_place_of_a_tokenizer(tmp_path):
    pipe, file = tiny_flux2(), tmp_path / "cat.safetensors"
    write_safetensors(file, {"mistral3_24b": to_raw(torch.randn(2, 16))}, {"pivotune.family": "flux2-dev"})
    with pivotune.load(pipe, file, name="<cat>"):
        expected = encoded(pipe, "flux2-dev")["states"]
    processor = Processor(pipe.tokenizer)
    pipe.tokenizer = processor
    with pivotune.load(pipe, file, name="<cat>"):
        assert torch.equal(encoded(pipe, "flux2-dev")["states"], expected)
    assert pipe.tokenizer is processor
    assert processor.tokenizer.chat_template is None


def test_errors_are_one_line_and_load_nothing(tmp_path):
    pipe, file = tiny_sd(width=768), bundle_file(tmp_path / "cat.safetensors")
    before = everything(pipe)
    wide, other, text = tmp_path / "wide.safetensors", tmp_path / "sdxl.safetensors", tmp_path / "text.safetensors"
    write_safetensors(wide, {"emb_params": to_raw(torch.ones(1, 1024))}, {})
    write([embedding("xl", {"clip_l": 768, "clip_g": 1280})], "comfyui", other.parent, family="sdxl")
    (tmp_path / "xl.safetensors").rename(other)
    text.write_text("{}")
    wrong = {
        "1024 values": lambda: pivotune.load(pipe, wide),
        "clip_g vectors have 1280 values": lambda: pivotune.load(pipe, other),
        "JSON text": lambda: pivotune.load(pipe, text),
        "no pipeline of the family 'sdxl'": lambda: pivotune.load(pipe, file, family="sdxl"),
        "is not supported": lambda: pivotune.load(SimpleNamespace(), file),
        "no such file": lambda: pivotune.load(pipe, tmp_path / "none.safetensors"),
    }
    for message, call in wrong.items():
        with pytest.raises((StageError, ConvertError, OSError), match=f"(?i){message}") as caught:
            call()
        assert "\n" not in str(caught.value)
    with pivotune.load(pipe, file), pytest.raises(StageError, match="'CAT0' is already loaded"):
        pivotune.load(pipe, file, name="CAT0")
    assert_same(before, everything(pipe))


def test_a_lora_for_another_model_leaves_the_pipeline_unchanged(tmp_path):
    pipe = tiny_sd(width=768)
    before = everything(pipe)
    names = ("lora_unet_down_blocks_9_attentions_0_transformer_blocks_0_attn2_to_k", "unet.down_blocks.9.to_k")
    for name, down, up in zip(names, ("lora_down", "lora_A"), ("lora_up", "lora_B"), strict=True):
        tensors = {f"{name}.{down}.weight": torch.ones(2, 768), f"{name}.{up}.weight": torch.ones(16, 2)}
        file = tmp_path / f"{down}.safetensors"
        write_safetensors(file, {key: to_raw(value) for key, value in tensors.items()}, {})
        with pytest.raises(StageError, match=r"layer|fit"):
            pivotune.load(pipe, file)
        assert_same(before, everything(pipe))


def test_the_package_is_imported_without_torch_and_its_help_is_a_page():
    code = (
        "import sys, pydoc, pivotune; from pivotune import inspect, check; assert 'torch' not in sys.modules;"
        "print(pydoc.plain(pydoc.render_doc(pivotune)))"
    )
    page = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    for name in ("bundle", "check", "inspect", "load", "retarget", "run", "unbundle"):
        assert f"\n    {name}(" in page
    assert set(pivotune.__all__) <= set(dir(pivotune))
    with pytest.raises(AttributeError, match="'lode'"):
        pivotune.lode  # noqa: B018


def test_a_recipe_is_checked_and_run_from_python(tmp_path):
    recipe = make_project(tmp_path)
    assert pivotune.check(recipe).failed is False
    assert pivotune.check(recipe, {"train.steps": -1}).failed is True
    lines: list[str] = []
    result = pivotune.run(
        recipe, out=tmp_path / "run", overrides={"train.steps": 2, "export.targets": []}, progress=lines.append
    )
    assert result.folder == tmp_path / "run"
    assert result.report.is_file()
    assert lines
    with pivotune.load(DiffusionPipeline.from_pretrained(tmp_path / "model"), result.folder) as loaded:
        assert loaded.tokens == ("<cat>",)


@pytest.mark.parametrize("path", [None, 3, ["a.safetensors"]])
def test_what_is_no_path_is_one_line(path):
    with pytest.raises(StageError, match="not the path of a file"):
        pivotune.load(object(), path)
