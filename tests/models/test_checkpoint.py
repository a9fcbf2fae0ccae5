"""Single-file checkpoints are loaded bit for bit with a folder's configs, or are an error of one line."""

import pytest
import torch
from models.folders import assert_same_weights, load
from models.single_file import single_file
from safetensors.torch import save_file

from pivotune.pipeline.errors import StageError
from pivotune.pipeline.files import model_hashes
from pivotune.pipeline.models.denoisers import DENOISERS


@pytest.fixture
def write(tmp_path):
    """Write a state as a file, by its ending."""

    def write(state, name="model.safetensors"):
        path = tmp_path / name
        if path.suffix == ".ckpt":
            torch.save({"state_dict": state, "global_step": 7}, path)
        else:
            save_file(state, path)
        return path

    return write


def answers(model):
    """Text, prediction and image of a model."""
    pipe, kind = model.pipe, DENOISERS[model.family.denoiser_kind]
    with torch.no_grad():
        text = kind.encode(pipe, ["a red ring"])
        noisy = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0)).to(model.dtype)
        predicted = kind.predict(pipe, noisy, torch.tensor([500]), text)
        decoded = pipe.vae.decode(noisy).sample
    return [text.states, predicted, decoded] + ([] if text.pooled is None else [text.pooled])


@pytest.mark.parametrize("ending", ["safetensors", "ckpt"])
def test_a_single_file_equals_its_diffusers_model(write, ending, folder, family, original):
    path = write(single_file(original), f"model.{ending}")
    model = load(path, family, config=str(folder))
    assert_same_weights(model.pipe, original)
    for mine, theirs in zip(answers(model), answers(load(folder, family)), strict=True):
        assert torch.equal(mine, theirs)
    assert model.path == path
    assert list(model_hashes(model.path)) == [path.name]
    assert not any(weight.requires_grad for weight in model.denoiser.parameters())


def test_a_single_file_in_float16_has_a_float32_vae(write, sdxl_folder, originals):
    original = originals["sdxl"][0]
    path = write(single_file(original))
    model = load(path, "sdxl", "float16", config=str(sdxl_folder))
    assert torch.equal(model.pipe.vae.decoder.conv_in.weight, original.vae.decoder.conv_in.weight)
    assert torch.equal(model.pipe.unet.conv_in.weight, original.unet.conv_in.weight.half())


@pytest.mark.parametrize(
    ("part", "prefix"),
    [
        ("", "model.diffusion_model.middle_block.1.transformer_blocks.0.attn2"),
        ("", "first_stage_model.decoder.mid"),
        ("text_encoder", "conditioner.embedders.0.transformer.text_model.encoder.layers.1"),
        ("text_encoder_2", "conditioner.embedders.1.model.transformer.resblocks.1"),
        ("text_encoder_2", "conditioner.embedders.1.model.text_projection"),
    ],
)
def test_a_checkpoint_that_lacks_weights_is_refused(write, sdxl_folder, originals, part, prefix):
    state = single_file(originals["sdxl"][0])
    remaining = {name: tensor for name, tensor in state.items() if not name.startswith(prefix)}
    assert len(remaining) < len(state)
    with pytest.raises(
        StageError,
        match=rf"{part} lacks \d+ of its \d+ weights" if part else "lacks weights of the denoiser or the VAE",
    ):
        load(write(remaining), "sdxl", config=str(sdxl_folder))


@pytest.mark.parametrize("prefix", ["model.diffusion_model.", "first_stage_model.", "cond_stage_model."])
def test_a_checkpoint_without_a_whole_part_is_refused(write, sd1_folder, originals, prefix):
    state = single_file(originals["sd1"][0])
    for weights in sd1_folder.glob("*/*.safetensors"):
        weights.unlink()
    path = write({name: tensor for name, tensor in state.items() if not name.startswith(prefix)})
    with pytest.raises(StageError, match="cannot be loaded: ") as raised:
        load(path, "sd1", config=str(sd1_folder))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("wrong", ["sd1 as sdxl", "sdxl as sd1"])
def test_a_checkpoint_of_another_family_is_refused(write, sd1_folder, sdxl_folder, originals, wrong):
    real, named = wrong.split(" as ")
    path = write(single_file(originals[real][0]))
    with pytest.raises(StageError, match="cannot be loaded: "):
        load(path, named, config=str(sd1_folder if named == "sd1" else sdxl_folder))


@pytest.mark.parametrize(
    "content", [b"", b"no checkpoint at all, just embeddings", b"\x00" * 4096, b"PK\x03\x04 broken"]
)
@pytest.mark.parametrize("ending", ["safetensors", "ckpt"])
def test_a_file_that_is_no_checkpoint_is_refused(tmp_path, sd1_folder, content, ending):
    path = tmp_path / f"model.{ending}"
    path.write_bytes(content)
    with pytest.raises(StageError, match="cannot be loaded: "):
        load(path, config=str(sd1_folder))


@pytest.mark.parametrize("ending", ["safetensors", "ckpt"])
def test_a_truncated_checkpoint_is_refused(write, sd1_folder, originals, ending):
    path = write(single_file(originals["sd1"][0]), f"model.{ending}")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(StageError, match="cannot be loaded: "):
        load(path, config=str(sd1_folder))


def test_an_embedding_or_lora_is_no_model(write, sd1_folder):
    for state in ({"clip_l": torch.zeros(2, 768)}, {"lora_unet_x.lora_up.weight": torch.zeros(4, 4)}):
        with pytest.raises(StageError, match="cannot be loaded: "):
            load(write(state), config=str(sd1_folder))


class Trap:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_a_checkpoint_cannot_run_code(tmp_path, sd1_folder):
    torch.save({"state_dict": {}, "extra": Trap(tmp_path / "sprung")}, tmp_path / "model.ckpt")
    with pytest.raises(StageError, match="cannot be loaded: "):
        load(tmp_path / "model.ckpt", config=str(sd1_folder))
    assert not (tmp_path / "sprung").exists()


def test_a_checkpoint_that_does_not_tell_its_family_is_an_error(write, originals, monkeypatch, tmp_path):
    state = single_file(originals["sd1"][0])
    path = write({name: tensor for name, tensor in state.items() if not name.startswith("cond_stage_model")})
    with pytest.raises(StageError, match=r"do not tell its family; set model\.family, one of .*sd1"):
        load(path, None)
    (tmp_path / "model.bin").touch()
    with pytest.raises(StageError, match=r"a checkpoint ends in \.safetensors or \.ckpt"):
        load(tmp_path / "model.bin")


def test_without_config_and_network_the_error_names_the_key(write, originals, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    path = write(single_file(originals["sd1"][0]))
    with pytest.raises(StageError, match=r"set model\.config to a diffusers folder of the same family$") as raised:
        load(path)
    assert "\n" not in str(raised.value)


def test_a_config_that_is_no_folder_is_refused(write, originals, tmp_path):
    path = write(single_file(originals["sd1"][0]))
    for config in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(StageError, match="cannot be loaded: "):
            load(path, config=str(config))
