"""A fine-tuned model's files: read by diffusers' own readers, they give every weight back bit for bit."""

import json

import pytest
import torch
from diffusers import (
    DiffusionPipeline,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
)
from safetensors import safe_open
from tiny import real_blocks, tiny_sd3

from pivotune.converters.errors import ConvertError
from pivotune.converters.families import families
from pivotune.converters.safetensors_file import read
from pivotune.pipeline.errors import StageError
from pivotune.pipeline.export.model import write_model_file, write_model_folder
from pivotune.pipeline.models.load import quiet_libraries

FAMILIES = ["sd1", "sd2", "sdxl", "sd3"]
PIPES = {"sdxl": StableDiffusionXLPipeline, "sd3": StableDiffusion3Pipeline}


def made(family):
    """A model with all that the real one has; of SD3 also the second attention and norms of SD3.5."""
    if family != "sd3":
        return real_blocks(family)
    pipe = tiny_sd3(qk_norm="rms_norm", dual_attention_layers=(0,))
    torch.nn.init.eye_(pipe.text_encoder.text_projection.weight)  # as published, and as its readers take it to be
    return pipe


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    quiet_libraries()
    return request.param


@pytest.fixture(scope="module")
def pipe(family):
    return made(family)


def modules(pipe):
    return {name: part for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)}


def assert_same(pipe, other, dtype=torch.float32):
    assert modules(pipe).keys() == modules(other).keys()
    for name, part in modules(pipe).items():
        mine, theirs = part.state_dict(), modules(other)[name].state_dict()
        assert mine.keys() == theirs.keys(), name
        for key, tensor in mine.items():
            assert torch.equal(tensor.to(dtype), theirs[key]), (name, key)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_checkpoint_file_contains_every_weight(tmp_path, family, pipe, dtype):
    path = tmp_path / "model.safetensors"
    assert write_model_file(pipe, families()[family], path, dtype, title="mine") == []
    pipe.save_pretrained(tmp_path / "config")
    for weights in (tmp_path / "config").rglob("*.safetensors"):
        weights.unlink()
    back = PIPES.get(family, StableDiffusionPipeline).from_single_file(
        str(path), config=str(tmp_path / "config"), local_files_only=True, dtype=dtype,
        **({} if family == "sd3" else {"safety_checker": None}),
    )  # fmt: skip
    assert_same(pipe, back, dtype)


def test_no_tensor_is_lost_in_the_checkpoint_file(tmp_path, family, pipe):
    write_model_file(pipe, families()[family], tmp_path / "model.safetensors", torch.float32, title="mine")
    tensors, metadata = read(tmp_path / "model.safetensors")
    numbers = sum(len(raw.data) for raw in tensors.values()) // 4
    assert numbers == sum(tensor.numel() for part in modules(pipe).values() for tensor in part.state_dict().values())
    assert metadata["modelspec.architecture"] == families()[family].modelspec
    assert len(metadata["modelspec.hash_sha256"]) == 66
    assert ("v_pred" in tensors) == (family == "sd2") == (metadata.get("modelspec.prediction_type") == "v")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_folder_contains_every_weight(tmp_path, family, pipe, dtype):
    write_model_folder(pipe, tmp_path / "model", dtype)
    back = DiffusionPipeline.from_pretrained(tmp_path / "model", local_files_only=True, dtype=dtype)
    assert type(back) is type(pipe)
    assert_same(pipe, back, dtype)
    plain = DiffusionPipeline.from_pretrained(tmp_path / "model", local_files_only=True)
    assert {part.dtype for part in plain.components.values() if isinstance(part, torch.nn.Module)} == {torch.float32}
    assert back.scheduler.config.get("prediction_type") == pipe.scheduler.config.get("prediction_type")
    text = "a photo of a red ring, blue"
    assert back.tokenizer(text).input_ids == pipe.tokenizer(text).input_ids
    with safe_open(tmp_path / "model" / "text_encoder" / "model.safetensors", "pt") as file:
        own = set(file.keys()) - {"text_projection.weight"}
        assert own
        assert all(name.startswith("text_model.") for name in own)


def test_older_versions_find_the_tokenizer(tmp_path, pipe):
    write_model_folder(pipe, tmp_path / "model", torch.float32)
    folder = tmp_path / "model" / "tokenizer"
    assert json.loads((folder / "vocab.json").read_text("utf-8")) == pipe.tokenizer.get_vocab()
    assert (folder / "merges.txt").read_text("utf-8").startswith("#version")


def test_files_of_tokenizers_are_written_as_they_were_loaded(tmp_path, pipe):
    files = {"tokenizer.json": b"{}", "more/note.txt": b"mine"}
    write_model_folder(pipe, tmp_path / "model", torch.float32, tokenizers={"tokenizer": files})
    folder = tmp_path / "model" / "tokenizer"
    written = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert written == files


def test_values_too_large_for_float16_are_refused_and_leave_no_file(tmp_path):
    pipe = real_blocks("sd1")
    with torch.no_grad():
        pipe.unet.conv_in.bias[0] = 1e6
    with pytest.raises(ConvertError, match=r"conv_in.bias: has values too large for float16"):
        write_model_folder(pipe, tmp_path / "model", torch.float16)
    with pytest.raises(ConvertError, match=r"input_blocks.0.0.bias: has values too large for float16"):
        write_model_file(pipe, families()["sd1"], tmp_path / "model.safetensors", torch.float16, title="mine")
    assert list(tmp_path.iterdir()) == []


def test_an_unsupported_layer_of_a_unet_is_named(tmp_path):
    pipe = real_blocks("sd1")
    pipe.unet.extra = torch.nn.Linear(2, 2)
    with pytest.raises(StageError, match="the UNet's extra is not supported"):
        write_model_file(pipe, families()["sd1"], tmp_path / "model.safetensors", torch.float32, title="mine")


def test_a_projection_that_programs_ignore_gives_a_warning(tmp_path):
    warnings = write_model_file(
        tiny_sd3(), families()["sd3"], tmp_path / "model.safetensors", torch.float32, title="mine"
    )
    assert warnings == ["model.safetensors: programs ignore the projection of text_encoder, which this model has"]


def test_an_unsupported_layer_of_sd3_is_named(tmp_path):
    pipe = tiny_sd3()
    pipe.transformer.transformer_blocks[0].extra = torch.nn.Linear(2, 2)
    with pytest.raises(StageError, match="the transformer's extra is not supported"):
        write_model_file(pipe, families()["sd3"], tmp_path / "model.safetensors", torch.float32, title="mine")
