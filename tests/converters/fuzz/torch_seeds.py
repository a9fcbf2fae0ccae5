"""Files of torch.save without torch: opcodes as its pickler writes them, a zip or a stream of storages around."""

import pickle
import random
import struct
import zlib
from dataclasses import dataclass, replace

MAGIC = 0x1950A86A20F9469CFC6C
SYSTEM = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}
ORDERED = b"ccollections\nOrderedDict\n)R"
WIDTH = {"FloatStorage": 4, "HalfStorage": 2, "BFloat16Storage": 2, "LongStorage": 8, "DoubleStorage": 8}


@dataclass(frozen=True)
class Parts:
    """What a file is put together from: the pickle of its value, and its storages (key to bytes and item size)."""

    name: str
    form: str  # "zip" or "stream"
    value: bytes
    storages: dict[str, tuple[bytes, int]]

    def file(self):
        return zipped(self) if self.form == "zip" else streamed(self)

    def with_value(self, value):
        return replace(self, value=value)


def zipped(parts, more=()):
    """A file of torch 1.6 and later; `more` are further (name, bytes, whether packed) members."""
    members = [("archive/data.pkl", parts.value, False), ("archive/byteorder", b"little", False)]
    members += [(f"archive/data/{key}", data, False) for key, (data, _) in parts.storages.items()]
    members += [("archive/version", b"3\n", False), *more]
    out, directory = bytearray(), bytearray()
    for name, data, packed in members:
        engine = zlib.compressobj(1, zlib.DEFLATED, -15)
        packed_data = engine.compress(data) + engine.flush() if packed else data
        sizes = (8 if packed else 0, 0, 33, zlib.crc32(data), len(packed_data), len(data), len(name.encode()), 0)
        directory += struct.pack(
            "<4s6H3L5H2L", b"PK\x01\x02", 20, 20, 2048, *sizes[:3], *sizes[3:], 0, 0, 0, 0, len(out)
        )
        out += struct.pack("<4s5H3L2H", b"PK\x03\x04", 20, 2048, *sizes) + name.encode() + packed_data
        directory += name.encode()
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, len(members), len(members), len(directory), len(out), 0)
    return bytes(out + directory + end)


def streamed(parts):
    """A file of torch before 1.6."""
    start = b"".join(pickle.dumps(value, 2) for value in (MAGIC, 1001, SYSTEM))
    keys = pickle.dumps(list(parts.storages), 2)
    ends = (struct.pack("<q", len(data) // size) + data for data, size in parts.storages.values())
    return start + parts.value + keys + b"".join(ends)


class Pickler:
    """Writes what torch's pickler writes for the few kinds of values that embeddings are made of."""

    def __init__(self, form):
        self.form, self.storages, self.memo, self.source = form, {}, 0, random.Random(5)

    def put(self):
        self.memo += 1
        return b"q" + bytes([self.memo - 1]) if self.memo <= 256 else b"r" + struct.pack("<I", self.memo - 1)

    def named(self, module, name):
        return f"c{module}\n{name}\n".encode() + self.put()

    def value(self, value):
        if isinstance(value, bytes):  # opcodes already
            return value
        if isinstance(value, str):
            return b"X" + struct.pack("<I", len(value.encode())) + value.encode() + self.put()
        if isinstance(value, tuple):
            return b"(" + b"".join(map(self.value, value)) + b"t" + self.put()
        if isinstance(value, list):
            return b"]" + self.put() + b"(" + b"".join(map(self.value, value)) + b"e"
        if isinstance(value, dict):
            return b"}" + self.put() + self.items(value)
        return pickle.dumps(value, 2)[2:-1]  # numbers, None, truth values

    def items(self, value):
        return b"(" + b"".join(self.value(part) for item in value.items() for part in item) + b"u"

    def ordered(self, value):
        return ORDERED + self.put() + self.items(value)

    def tensor(self, shape, kind="FloatStorage", stride=None, start=0, count=None):
        sizes = [1]
        for size in reversed(shape):
            sizes.insert(0, sizes[0] * size)
        count, key = count or sizes[0], str(len(self.storages))
        numbers = [self.source.uniform(-0.1, 0.1) for _ in range(count)]
        code = {"FloatStorage": "f", "HalfStorage": "e", "DoubleStorage": "d"}.get(kind)
        data = struct.pack(f"<{count}{code}", *numbers) if code else self.source.randbytes(count * WIDTH[kind])
        self.storages[key] = (data, WIDTH[kind])
        more = (None,) if self.form == "stream" else ()
        identity = self.value(("storage", self.named("torch", kind), key, "cpu", count, *more)) + b"Q"
        args = (identity, start, tuple(shape), tuple(stride or sizes[1:]), False, ORDERED)
        return self.named("torch._utils", "_rebuild_tensor_v2") + self.value(args) + b"R" + self.put()

    def parameter(self, shape):
        args = (self.tensor(shape), True, ORDERED)
        return self.named("torch._utils", "_rebuild_parameter") + self.value(args) + b"R" + self.put()

    def parameters(self, shapes):
        state = {"training": True, "_parameters": self.ordered({k: self.parameter(s) for k, s in shapes.items()}),
                 "_modules": ORDERED}  # fmt: skip
        kind = self.named("torch.nn.modules.container", "ParameterDict")
        return kind + b")\x81" + self.put() + self.value(state) + b"b"


def _values(p):
    """(name, opcodes) of every dialect that is a pickle."""
    one = (1, 768)
    more = {"name": "cat", "step": 500, "sd_checkpoint": "abc", "sd_checkpoint_name": None}
    token = {"string_to_token": {"*": 265}}
    yield "original", lambda: {"string_to_token": {"a": p.tensor((), "LongStorage"), "b": 266},
                               "string_to_param": p.parameters({"a": one, "b": (2, 768)})}  # fmt: skip
    yield "A1111", lambda: {**token, "string_to_param": {"*": p.parameter(one)}, **more}
    yield "A1111, SDXL", lambda: {**token, "string_to_param": {"*": p.tensor((1, 2048))}, **more}
    yield "HCP", lambda: {"string_to_param": {"*": p.tensor(one, "HalfStorage")}, "name": "x"}
    yield "kohya .pt", lambda: {"emb_params": p.tensor((1, 1024))}
    yield "LyCORIS .pt", lambda: {"clip_l": p.tensor(one), "name": "x"}
    yield "SDXL .pt", lambda: {"clip_l": p.tensor(one, "BFloat16Storage"), "clip_g": p.tensor((1, 1280))}
    yield "diffusers .bin", lambda: {"<cat>": p.tensor((768,))}
    yield "diffusers, Parameter", lambda: p.ordered({"<cat>": p.parameter((1, 1280))})
    yield "cloneofsimo .ti.pt", lambda: {"<s1>": p.tensor((768,)), "<s2>": p.tensor((768,), "DoubleStorage")}
    yield "ComfyUI list", lambda: [{"a": p.tensor(one), "b": p.tensor((1280,))}, {"a": p.tensor((2, 768))}]
    yield "a bare tensor", lambda: p.tensor(one)
    yield "a transposed tensor", lambda: {"<cat>": p.tensor((2, 768), stride=(1, 2))}
    yield "a view", lambda: {"<cat>": p.tensor(one, start=768, count=2000)}
    yield "LoRA .pt", lambda: {"lora_unet_x_attn2_to_k.lora_down.weight": p.tensor((4, 8)), "clip_l": p.tensor(one)}


def all_parts():
    """Every pickle dialect, new and old."""
    for form in ("zip", "stream"):
        for name, _ in _values(None):
            pickler = Pickler(form)
            value = dict(_values(pickler))[name]()
            yield Parts(f"{name} ({form})", form, b"\x80\x02" + pickler.value(value) + b".", pickler.storages)
    plain = {"<cat>": [1, 2.5, "x", None, True, b"y", (1,), {2}, 10**30], "step": 3, "name": "é"}
    yield Parts("protocol 4", "stream", pickle.dumps(plain, 4), {})
    yield Parts("protocol 5", "zip", pickle.dumps(plain, 5), {})
