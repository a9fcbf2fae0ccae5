"""Weights lie at aligned addresses, and those of the run's dtype were read there, not copied from a mapped file."""

import pytest
import safetensors
import safetensors.torch
import torch
import transformers.modeling_utils
from models.folders import assert_same_weights, load, rewrite
from models.single_file import single_file
from safetensors.torch import save_file
from torch.utils import deterministic

from pivotune.pipeline.errors import StageError
from pivotune.pipeline.models import aligned
from pivotune.pipeline.models import load as loading
from pivotune.pipeline.models import pipeline as reading
from pivotune.pipeline.models.aligned import ALIGNMENT, aligned_reading
from pivotune.pipeline.models.pipeline import read_folder


def weights(model):
    parts = (part for part in model.pipe.components.values() if isinstance(part, torch.nn.Module))
    return [tensor for part in parts for tensor in (*part.parameters(), *part.buffers())]


def shifted(folder):
    """The same weights at addresses that are not aligned in a mapped file: a longer header moves them."""
    for part in ("text_encoder", "unet", "vae"):
        rewrite(folder, part, lambda state: {"a": torch.zeros(1), **state})  # one float before all others
    return folder


@pytest.fixture
def copied(monkeypatch):
    """The sizes of the tensors that were copied to align them."""
    sizes = []

    def align(part):
        tensors = (*part.parameters(), *part.buffers())
        sizes.extend(tensor.numel() for tensor in tensors if tensor.data_ptr() % ALIGNMENT)
        aligned.align(part)

    monkeypatch.setattr(loading, "align", align)
    return sizes


def test_a_folder_is_read_to_aligned_addresses(sd1_folder, originals, copied):
    model = load(shifted(sd1_folder))
    assert_same_weights(model.pipe, originals["sd1"][0])
    assert copied == []
    assert all(tensor.data_ptr() % ALIGNMENT == 0 for tensor in weights(model))


def test_a_single_file_is_read_to_aligned_addresses(sd1_folder, originals, copied, tmp_path):
    save_file({"a": torch.zeros(1), **single_file(originals["sd1"][0])}, tmp_path / "model.safetensors")
    model = load(tmp_path / "model.safetensors", config=str(sd1_folder))
    assert_same_weights(model.pipe, originals["sd1"][0])
    assert copied == []


def test_without_it_tensors_of_mapped_files_are_copied(sd1_folder, originals, copied, monkeypatch):
    monkeypatch.setattr(aligned, "_tensors", lambda filename, dtype: {})
    model = load(shifted(sd1_folder))
    assert_same_weights(model.pipe, originals["sd1"][0])
    assert copied
    assert all(tensor.data_ptr() % ALIGNMENT == 0 for tensor in weights(model))


def test_tensors_of_another_dtype_are_converted(sd1_folder, originals, copied):
    model = load(shifted(sd1_folder), dtype="bfloat16")
    assert torch.equal(model.pipe.unet.conv_in.weight, originals["sd1"][0].unet.conv_in.weight.bfloat16())
    assert copied == []


def test_values_of_every_shape_are_read(tmp_path):
    path = tmp_path / "all.safetensors"
    tensors = {
        "none": torch.empty(0, 3), "one": torch.tensor(2.5), "int": torch.arange(5), "half": torch.ones(3).half(),
        "many": torch.randn(7, 11, 3),
    }  # fmt: skip
    save_file(tensors, path)
    with aligned_reading(torch.float32):
        read = safetensors.torch.load_file(path)
    assert read.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert (read[name].dtype, read[name].shape) == (tensor.dtype, tensor.shape)
        assert torch.equal(read[name], tensor)
    with path.open("r+b") as file:  # mapped tensors would follow, those that were read do not
        file.seek(-4, 2)
        file.write(b"\x00\x00\x00\x40")
    assert torch.equal(read["many"], tensors["many"])


def replaced():
    return (safetensors.torch.load_file, transformers.modeling_utils.safe_open, deterministic.fill_uninitialized_memory)


def test_the_libraries_are_as_before_also_after_an_error(sd1_folder):
    before, seen = replaced(), []
    (sd1_folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "read_folder", lambda *inputs: seen.append(replaced()) or read_folder(*inputs))
        with pytest.raises(StageError):
            load(sd1_folder)
    assert not any(one is other for one, other in zip(before, *seen, strict=True))
    assert replaced() == before


def test_a_file_that_we_do_not_read_is_left_to_the_libraries(sd1_folder):
    path = sd1_folder / "unet" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(StageError, match="cannot be loaded"):
        load(sd1_folder)
