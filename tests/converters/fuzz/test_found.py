"""What the fuzzer and a close reading have found, each in its smallest form."""

import json
import resource
import struct
from pathlib import Path

import pytest
from crash import faults
from fuzz import guard, images, torch_seeds

from pivotune.converters.errors import ConvertError
from pivotune.converters.families import families
from pivotune.converters.inspection import inspect
from pivotune.converters.programs import reads
from pivotune.converters.read import identify
from pivotune.converters.stored import Stored
from pivotune.converters.tensor import RawTensor

GLOBAL = b"ctorch._utils\n_rebuild_tensor_v2\n"
LAUGHS = b"]q\0" + b"".join(b"(" + (b"h" + bytes([n])) * 10 + b"tq" + bytes([n + 1]) + b"0" for n in range(25)) + b"0"
HUGE = b"h\x19"  # a tuple of 10^25 lists, once LAUGHS has run
LONG = b"X" + struct.pack("<I", 1 << 20) + b"k" * (1 << 20) + b"q\0"


def header(tensors, size=0, metadata=None):
    header_ = {} if metadata is None else {"__metadata__": metadata}
    for name, (dtype, shape, length) in tensors.items():
        header_[name] = {"dtype": dtype, "shape": shape, "data_offsets": [size, size + length]}
        size += length
    text = json.dumps(header_).encode()
    return len(text).to_bytes(8, "little") + text + bytes(size)


def stream(value, keys=b"]."):
    parts = torch_seeds.Parts("x", "stream", b"\x80\x02" + value + b".", {})
    return torch_seeds.streamed(parts)[: -len(torch_seeds.pickle.dumps([], 2))] + b"\x80\x02" + keys


def zipped(value, storage=b"\0" * 64):
    return torch_seeds.zipped(torch_seeds.Parts("x", "zip", b"\x80\x02" + value + b".", {"0": (storage, 4)}))


def tensor(shape, stride):
    """A tensor over storage 0, as opcodes."""
    sizes = [b"(" + b"".join(b"J" + struct.pack("<i", n) for n in side) + b"t" for side in (shape, stride)]
    identity = b"(X\7\0\0\0storagectorch\nFloatStorage\nX\1\0\0\0" + b"0X\3\0\0\0cpuK\x10tQ"
    return GLOBAL + b"(" + identity + b"K\0" + sizes[0] + sizes[1] + b"\x89)tR"


def collisions(count):
    numbers = ((n * ((1 << 61) - 1)).to_bytes(10, "little") for n in range(count))
    return b"}(" + b"".join(b"\x8a\x0a" + number + b"N" for number in numbers) + b"u"


def moved(data, offset):
    """A zip whose directory gives another place for its first member."""
    at = data.index(b"PK\x01\x02")
    return data[: at + 42] + struct.pack("<I", offset) + data[at + 46 :]


REFUSED = {
    "one byte of a pickle": b"\x80",
    "a member beyond the file": moved(zipped(b"}"), 0xFFFFFFF0),
    "a member before the file": moved(zipped(b"}"), 0)[200:],
    "a tuple without a mark": b"\x80\x02t.",
    "a class called by a bomb": b"\x80\x04" + LAUGHS + HUGE + HUGE + b"\x93.",
    "storages called by a bomb": stream(b"}", LAUGHS + b"]" + HUGE + b"a."),
    "storages called by numbers": stream(b"}", b"]K\0a."),
    "a long name over and over": b"\x80\x02}" + LONG + b"](" + b"]" * 200_000 + b"es.",
    "a long text over and over": b"\x80\x02]" + LONG + b"(" + b"h\0" * 200_000 + b"e.",
    "a storage that is nowhere": b"\x80\x02}X\1\0\0\0a" + tensor((1, 768), (768, 1)) + b"s.",
    "a shape of 100,000 sides": zipped(b"}X\1\0\0\0a" + tensor([1] * 100_000, [1] * 100_000) + b"s"),
    "one number for a million": zipped(b"](" + tensor((1 << 21, 2), (0, 0)) * 40 + b"e"),
    "a column of a million": zipped(b"](" + tensor((1 << 20, 2), (1, 0)) * 40 + b"e", bytes(4 << 20)),
    "more steps than any file": b"\x80\x02" + b"N0" * 1_000_001 + b"N.",
    "metadata that is a list": header({"emb_params": ("F32", [1, 768], 3072)}, metadata=[]),
    "an image cut in its first chunk": images.with_chunk(b"{}")[:20] + b"\0" * 4,
    "an empty chunk": b"\x89PNG\r\n\x1a\n" + images.chunk(b"IHDR", b""),
    "a number of 400 digits": images.with_chunk(b'{"string_to_param":{"*":{"TORCHTENSOR":[' + b"9" * 400 + b"]}}}"),
    "two million numbers": images.with_chunk(b"[" + b"0," * 2_000_000 + b"0]"),
    "a chunk of 4 GB": images.png(8, 8, b"")[:33] + b"\xff\xff\xff\xffIDAT" + bytes(40),
    "an image of 20,000 by 20,000": images.png(20_000, 20_000, b""),
}  # fmt: skip
READ = {
    "a number called like an embedding": header({"bundle_emb.cat.clip_l": ("F32", [], 4), "lora_x": ("F32", [1], 4)}),
    "a flagged number": header({"<s1>": ("F32", [], 4), "unet:0:up": ("F32", [1], 4)}, metadata={"<s1>": "<embed>"}),
    "a cube beside a LoRA": header({"clip_l": ("F32", [1, 1, 768], 3072), "lora_x": ("F32", [1], 4)}),
    "halves of six bits": header({"emb_params": ("F6_E2M3", [1, 2048], 1536)}),
    "a reference that is a bomb": None,
    "numbers chosen to collide": b"\x80\x02" + collisions(40_000) + b".",
    "a name of many beginnings": header({"unet" * 250_000 + "attn2_to_k.lora_down.weight": ("F32", [4, 768], 12288)}),
    "an embedding with a slash": header(
        {"bundle_emb.a/b.clip_l": ("F32", [1, 768], 3072), "lora_x.y": ("F32", [1], 4)}
    ),
    "a name of 10,000 characters": header({"\x1b" * 10_000: ("F32", [4, 4], 64)}),
}
READ["a reference that is a bomb"] = b"\x80\x02" + LAUGHS + b"}X\1\0\0\0a" + HUGE + b"Qs."


def bounded(path, calls):
    """As in a process of its own with 160 MiB more memory and 10 seconds of CPU."""
    guard.limit_memory(160 << 20)
    used = int(resource.getrusage(resource.RUSAGE_SELF).ru_utime)
    resource.setrlimit(resource.RLIMIT_CPU, (used + 10, used + 10))
    for call in calls:
        call(path)


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_read_is_refused_within_bounds(what, tmp_path):
    path = tmp_path / "x.pt"
    path.write_bytes(REFUSED[what])
    assert faults.forked(lambda: bounded(path, [identify])) == faults.REFUSED
    with pytest.raises(ConvertError) as error:
        inspect(path)
    assert len(str(error.value)) < 2100
    assert str(error.value).isprintable()


@pytest.mark.parametrize("what", READ)
def test_odd_files_are_reported_within_bounds(what, tmp_path):
    path = tmp_path / "x.pt"
    path.write_bytes(READ[what])
    assert faults.forked(lambda: bounded(path, [inspect])) == 0
    embeddings = [embedding["name"] for embedding in inspect(path)["embeddings"]]
    assert embeddings == {"halves of six bits": ["x"], "an embedding with a slash": ["a/b"]}.get(what, [])


def test_vectors_of_sdxls_encoders_are_refused_for_a_model_with_other_two():
    vectors = RawTensor("F32", (1, 768), bytes(3072))
    file = Stored(Path("x.safetensors"), {"clip_g": vectors, "clip_l": vectors}, {})
    assert "takes the file for an SDXL embedding" in reads("invokeai", file, families()["flux"].widths).refusal
