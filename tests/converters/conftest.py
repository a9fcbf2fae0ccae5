"""Sample vectors and files, made key by key."""

import os
import random
import struct
from math import prod

import pytest
from click.testing import CliRunner

from pivotune.converters import safetensors_file
from pivotune.converters.embedding import Embedding
from pivotune.converters.tensor import RawTensor

UNET = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"


@pytest.fixture(autouse=True)
def no_waiting_for_disks(monkeypatch):
    """Tests take seconds, not minutes; that files are brought to the disk is a test of its own."""
    synced = []
    monkeypatch.setattr(os, "fsync", synced.append)
    return synced


@pytest.fixture
def rows():
    """rows(n, width, dtype="F32") gives a tensor of numbers, other ones at each call, the same in each test run."""
    source = random.Random(7)

    def make(count, width, dtype="F32"):
        shape = (count, width) if count else (width,)
        numbers = [source.uniform(-0.1, 0.1) for _ in range(max(count, 1) * width)]
        code = {"F32": "f", "F16": "e", "F64": "d"}[dtype]
        return RawTensor(dtype, shape, struct.pack(f"<{len(numbers)}{code}", *numbers))

    return make


@pytest.fixture
def embedding(rows):
    """embedding(name, {"clip_l": 768}, count=2) gives an embedding."""

    def make(name, widths, count=2, **metadata):
        return Embedding(name, {key: rows(count, width) for key, width in widths.items()}, metadata)

    return make


@pytest.fixture
def saved(tmp_path):
    """saved("x.safetensors", {"key": tensor}, metadata) writes a file and gives its path."""

    def make(name, tensors, metadata=None):
        path = tmp_path / name
        safetensors_file.write(path, tensors, metadata or {})
        return path

    return make


@pytest.fixture
def tensors(rows):
    """tensors({name: shape}) gives tensors of any shape; None stands for the number 4."""

    def make(shapes):
        found = {
            name: rows(1, prod(shape)) if shape else RawTensor("F32", (), struct.pack("<f", 4))
            for name, shape in shapes.items()
        }
        return {name: RawTensor("F32", shapes[name] or (), tensor.data) for name, tensor in found.items()}

    return make


@pytest.fixture
def same():
    """same(a, b): two mappings hold the same tensors bit for bit."""

    def check(a, b):
        def plain(tensors):
            return {key: (tensor.dtype, tensor.shape, bytes(tensor.data)) for key, tensor in tensors.items()}

        return plain(a) == plain(b)

    return check


@pytest.fixture
def run(tmp_path, monkeypatch):
    """run("retarget", "a.pt", "--for", "a1111") in a folder of its own; gives click's result."""
    from pivotune.pipeline.cli.convert import COMMANDS as WRITING
    from pivotune.pipeline.cli.convert import inspect

    commands = {**WRITING, "inspect": inspect}
    monkeypatch.chdir(tmp_path)

    def call(*args):
        return CliRunner().invoke(commands[args[0]], [str(arg) for arg in args[1:]])

    return call


@pytest.fixture
def lora(rows):
    def make(inputs, **embeddings):
        tensors = {f"{UNET}.lora_down.weight": rows(4, inputs), f"{UNET}.lora_up.weight": rows(320, 4),
                   f"{UNET}.alpha": RawTensor("F32", (), b"\0\0\x80\x40")}  # fmt: skip
        for name, vectors in embeddings.items():
            tensors |= {f"bundle_emb.{name.replace('_', ' ')}.{key}": tensor for key, tensor in vectors.items()}
        return tensors

    return make


@pytest.fixture
def lora_with(lora):
    """The fixture `lora` for tests that have a function of that name."""
    return lora
