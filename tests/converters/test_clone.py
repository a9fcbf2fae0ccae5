"""Blocks shared with the file they come from, on a file system that can; copies elsewhere."""

import errno
import os
import shutil
import subprocess
import sys

import pytest

from pivotune.converters import clone, safetensors_bytes, safetensors_file
from pivotune.converters.adding import bundle
from pivotune.converters.atomic import batch
from pivotune.converters.tensor import RawTensor
from pivotune.converters.words import Options

MIB = 1 << 20


@pytest.fixture
def xfs(tmp_path):
    image, place = tmp_path / "image", tmp_path / "xfs"
    if shutil.which("mkfs.xfs") is None:
        pytest.skip("no mkfs.xfs here")
    place.mkdir()
    with open(image, "wb") as file:
        file.truncate(400 * MIB)
    subprocess.run(["mkfs.xfs", "-q", "-m", "reflink=1", str(image)], check=True)
    if subprocess.run(["mount", "-o", "loop", str(image), str(place)], check=False, capture_output=True).returncode:
        pytest.skip("no right to mount a file system here")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.fixture
def files(rows):
    """files(folder): a LoRA of 24 MB, with hashes or without, and a word."""

    def make(folder, metadata):
        name = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
        data = os.urandom(12 * MIB)
        tensors = {f"{name}.lora_down.weight": RawTensor("F16", (6 * MIB // 768, 768), data[: 6 * MIB // 768 * 1536]),
                   f"{name}.lora_up.weight": RawTensor("F16", (6 * MIB,), data)}  # fmt: skip
        safetensors_file.write(folder / "lora.safetensors", tensors, metadata)
        safetensors_file.write(folder / "cat.safetensors", {"emb_params": rows(2, 768)}, {})
        return folder / "lora.safetensors", [folder / "cat.safetensors"], tensors

    return make


def bundled(folder, lora, words):
    with batch() as together:
        bundle(together, lora, words, folder / "out.safetensors", [], Options())
    return safetensors_file.read(folder / "out.safetensors")


@pytest.mark.parametrize("metadata", [{}, {"sshs_model_hash": "", "sshs_legacy_hash": ""}])
def test_a_lora_shares_its_blocks_with_the_bundle_made_from_it(metadata, xfs, files, same, tmp_path):
    lora, words, tensors = files(xfs, metadata)
    os.sync()
    before = os.statvfs(xfs).f_bfree
    found, told = bundled(xfs, lora, words)
    os.sync()
    assert (before - os.statvfs(xfs).f_bfree) * os.statvfs(xfs).f_frsize < 2 * MIB
    assert same({name: found[name] for name in tensors}, tensors)
    for file in (lora, *words):
        shutil.copy(file, tmp_path)
    plain, hashes = bundled(tmp_path, tmp_path / lora.name, [tmp_path / word.name for word in words])
    assert same(found, plain)
    assert told["sshs_model_hash"] == hashes["sshs_model_hash"] if metadata else told == hashes


def test_where_blocks_cannot_be_shared_the_bytes_are_copied(files, same, tmp_path, monkeypatch):
    monkeypatch.setattr(safetensors_bytes, "cloned", lambda *_: False)
    lora, words, tensors = files(tmp_path, {})
    found, _ = bundled(tmp_path, lora, words)
    assert same({name: found[name] for name in tensors}, tensors)


@pytest.mark.parametrize("at", [0, 8, 4088, 4096, 12345])
@pytest.mark.parametrize("offset", [0, 8, 4095, 9000])
def test_padding_brings_both_to_one_place_within_a_block(at, offset):
    spaces = clone.padding(at, offset)
    assert 0 <= spaces < clone.BLOCK
    assert (at + spaces - offset) % clone.BLOCK == 0


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="nothing is reserved here")
@pytest.mark.parametrize("why", [errno.EINTR, errno.EACCES, errno.ENOTTY, errno.ENOSPC])
def test_blocks_that_cannot_be_reserved_cost_nothing_but_a_full_disk_is_told(tmp_path, monkeypatch, why):
    import fcntl

    def refused(*args):
        raise OSError(why, os.strerror(why))

    monkeypatch.setattr(fcntl, "ioctl", refused)
    data = os.urandom(2 * MIB)
    (tmp_path / "source").write_bytes(data)
    with open(tmp_path / "source", "rb") as source, open(tmp_path / "target", "wb") as target:
        if why == errno.ENOSPC:
            with pytest.raises(OSError, match="No space"):
                clone.copied(target, source.fileno(), 8, MIB)
            return
        done = clone.copied(target, source.fileno(), 8, MIB)
    assert (tmp_path / "target").read_bytes() == data[8 : 8 + done]
    assert done == MIB
