"""Lies in the header of a safetensors file, and headers that are true and odd."""

import json

from fuzz import embeddings

NASTY = (*embeddings.NUMBERS, 1.0, 0.5, -0.0, 1e308, float("inf"), float("nan"), "", "1", "F32", None, True, False, [],
         {}, [[1]], {"a": 1}, "\ud800", "\0")  # fmt: skip
DTYPES = {"F32": 32, "F16": 16, "BF16": 16, "F64": 64, "I64": 64, "U8": 8, "BOOL": 8, "F8_E4M3": 8, "F8_E8M0": 8,
          "F4": 4, "F6_E2M3": 6, "C64": 64, "I32": 32}  # fmt: skip
SHAPES = (
    (), (0,), (1,), (768,), (1, 768), (2, 768), (3, 768), (1, 1280), (0, 768), (768, 0), (1, 0), (1, 1, 768), (1, 2048),
    (768, 1), (1, 96), (1, 1024), (2, 2048), (1, 33), (4, 8), (2, 3, 4, 5), (0, 2**40), (2**40, 0), (1,) * 65,
)  # fmt: skip


def parse(data):
    size = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + size]), data[8 + size :]


def with_header(header, body, rng):
    text = header if isinstance(header, bytes) else json.dumps(header, ensure_ascii=rng.random() < 0.8).encode(
        "utf-8", "surrogatepass")  # fmt: skip
    return len(text).to_bytes(8, "little") + text + body


def file_data(rng, header, body=None):
    """The header with offsets that fit its types and shapes again, and as many bytes."""
    at, fixed = 0, {}
    for name, entry in header.items():
        if name != "__metadata__":
            size = DTYPES[entry["dtype"]]
            for length in entry["shape"]:
                size *= length
            entry = {**entry, "data_offsets": [at, at + (size + 7) // 8]}
            at = entry["data_offsets"][1]
        fixed[name] = entry
    if at > 1 << 20:
        return with_header(fixed, b"", rng)
    kinds = (
        lambda: bytes(at),
        lambda: (rng.randbytes(64) * (at // 64 + 1))[:at],
        lambda: b"\x3d\xcc\xcc\xcd" * (at // 4 + 1),
    )
    return with_header(fixed, body if body is not None and len(body) == at else rng.choice(kinds)()[:at], rng)


def _tensors(header):
    return [name for name in header if name != "__metadata__"]


def length_lie(rng, header, body):
    data = bytearray(with_header(header, body, rng))
    data[:8] = (rng.choice((*embeddings.NUMBERS, len(data), len(data) - 8)) % 2**64).to_bytes(8, "little")
    return bytes(data)


def entry_lie(rng, header, body):
    entry = header[rng.choice(_tensors(header))]
    key, value = rng.choice(("dtype", "shape", "data_offsets", "more")), rng.choice(NASTY)
    if isinstance(entry.get(key), list) and entry[key] and rng.random() < 0.8:
        entry[key][rng.randrange(len(entry[key]))] = value
    elif rng.random() < 0.1:
        entry.pop(key, None)
    else:
        entry[key] = value
    return with_header(header, body, rng)


def offset_lie(rng, header, body):
    for _ in range(rng.choice((1, 1, 2))):
        offsets = header[rng.choice(_tensors(header))]["data_offsets"]
        offsets[rng.randrange(2)] += rng.choice((-4, -1, 1, 4, 768, 2**63, -(2**63)))
    return with_header(header, body, rng)


def reshape(rng, header, body):
    for name in rng.sample(_tensors(header), k=rng.randint(1, min(3, len(_tensors(header))))):
        header[name]["shape"] = list(rng.choice(SHAPES))
        if rng.random() < 0.4:
            header[name]["dtype"] = rng.choice(list(DTYPES))
    return file_data(rng, header)


def rename(rng, header, body):
    for _ in range(rng.choice((1, 1, 2, 3))):
        old = rng.choice(_tensors(header))
        header[embeddings.name(rng)] = header.pop(old)
        if not _tensors(header):
            break
    try:
        return file_data(rng, header, body)
    except TypeError:  # a tensor called __metadata__
        return with_header(header, body, rng)


def more(rng, header, body):
    shape = list(rng.choice(SHAPES[:16]))
    for number in range(rng.choice((1, 1, 2, 20, 300))):
        name = embeddings.name(rng)
        header[name if number < 2 else f"{name}{number}"] = {"dtype": "F16", "shape": shape, "data_offsets": [0, 0]}
    header.pop("__metadata__", None)
    return file_data(rng, header)


def metadata(rng, header, body):
    metadata_ = header.get("__metadata__") or {}
    for _ in range(rng.choice((1, 2, 5))):
        key = rng.choice((*embeddings.METADATA_KEYS, *_tensors(header), *embeddings.HOSTILE[:30]))
        metadata_[key] = (
            rng.choice((*embeddings.METADATA_VALUES, *embeddings.HOSTILE)) if rng.random() < 0.9 else rng.choice(NASTY)
        )
    header["__metadata__"] = metadata_ if rng.random() < 0.95 else rng.choice(NASTY)
    return with_header(header, body, rng)


def twice(rng, header, body):
    text = json.dumps(header)
    name = rng.choice(list(header))
    again = json.dumps({name: header[rng.choice(list(header))]})
    return with_header((again[:-1] + "," + text[1:]).encode(), body, rng)


def deep(rng, header, body):
    kind, count = rng.choice(("[", '{"a":', '{"__metadata__":')), rng.choice((10, 500, 5_000, 50_000))
    text = json.dumps(header)[:-1] + ',"x":' + kind * count
    return with_header(text.encode(), body, rng)


DAMAGE = (
    *(b"\xff", b"\xc0\x80", b"\xef\xbb\xbf", b"\\ud800", b"\\u0000", b"\0", b"\\", b" "),
    *(b"{", b"}", b"[", b"]", b",", b":", b'"', b"-", b"1e999", b"NaN", b"9" * 5000, b"1.0", b"null"),
)


def text_damage(rng, header, body):
    text = bytearray(json.dumps(header).encode())
    for _ in range(rng.choice((1, 1, 2, 4))):
        at = rng.randrange(len(text))
        text[at : at + rng.choice((0, 1))] = rng.choice(DAMAGE)
    return with_header(bytes(text), body, rng)


ALL = (length_lie, entry_lie, entry_lie, offset_lie, reshape, reshape, reshape, rename, rename, rename, more, metadata,
       metadata, twice, deep, text_damage)  # fmt: skip


def mutate(rng, data):
    """One or two of them, so that lies meet odd truths."""
    for _ in range(rng.choice((1, 1, 1, 2))):
        try:
            header, body = parse(data)
            if not isinstance(header, dict) or not _tensors(header):
                break
            data = rng.choice(ALL)(rng, header, body)
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError, OverflowError):
            break  # the first one left no header that could be changed again
    return data
