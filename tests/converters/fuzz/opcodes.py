"""Damage to pickles, opcode by opcode: lost, doubled and swapped ones, attacks and bombs spliced in."""

import pickletools
import struct
from functools import cache

from fuzz import embeddings, plain, torch_seeds

LAUGHS = b"]q\xf00" + b"".join(
    b"(" + (b"h" + bytes([0xF0 + at])) * 10 + b"tq" + bytes([0xF1 + at]) + b"0" for at in range(9)
)  # h\xf9 is then a tuple of 10^9 lists
ATTACKS = (
    b"cos\nsystem\nX\x04\x00\x00\x00true\x85R",
    b"cposix\nsystem\n(X\x04\x00\x00\x00truetR",
    b"csubprocess\nPopen\n]X\x04\x00\x00\x00truea\x85R",
    b"cbuiltins\neval\nX\x03\x00\x00\x001+1\x85R",
    b"c__builtin__\nexec\nX\x04\x00\x00\x00passtR",
    b"cbuiltins\ngetattr\ncbuiltins\n__import__\nX\x02\x00\x00\x00os\x85RX\x06\x00\x00\x00system\x86RX\x04\x00\x00\x00true\x85R",
    b"ctorch.hub\nload\n)R", b"cnumpy\nload\nX\x01\x00\x00\x00x\x85R", b"ctorch._utils\n_rebuild_tensor_v2\n)R",
    b"ctorch.storage\n_load_from_bytes\nC\x05\x80\x02K\x00.\x85R", b"cbuiltins\nset\n)R", b"(dcos\nsystem\nb",
    b"(X\x04\x00\x00\x00trueios\nsystem\n", b"\x82\x01", b"\x8c\x02os\x8c\x06system\x93\x8c\x04true\x85R",
)  # fmt: skip
ODD = (
    b"N", b"(", b")", b"}", b"]", b"0", b"1", b"2", b"t", b"l", b"d", b"a", b"e", b"s", b"u", b"b", b"R", b"Q", b".",
    b"\x81", b"\x85", b"\x86", b"\x87", b"\x88", b"\x89", b"\x8f", b"\x90", b"\x93", b"\x94", b"\x97", b"h\x00",
    b"h\xff", b"j\xff\xff\xff\xff", b"q\x00", b"r\xff\xff\xff\x7f", b"\x8a\x00", b"\x8a\xff" + b"\xff" * 255,
    b"\x8b\xff\xff\xff\xff", b"G\x7f\xf0\x00\x00\x00\x00\x00\x00", b"X\xff\xff\xff\xff", b"\x8d" + b"\xff" * 8,
    b"\x8e" + b"\x7f" * 8, b"T\xff\xff\xff\xff", b"B\x00\x00\x00\x80", b"X\x01\x00\x00\x00\xff",
    b"X\x03\x00\x00\x00\xed\xa0\x80", b"U\x02\xe9\n", b"K\x00", b"J\xff\xff\xff\xff", b"M\xff\xff", b"\x80\x05",
    b"\x95" + bytes(8), b"c\n\n", b"c" + b"a" * 5000 + b"\nb\n", b"cbuiltins\nset\n", b"L5L\n", b"I01\n", b"F1.5\n",
    b"S'x'\n", b"V\\ud800\n", b"P1\n", b"p1\n", b"g1\n", b"o", b"i", b"\x98", b"\x92", LAUGHS, LAUGHS + b"h\xf9",
)  # fmt: skip


@cache
def tokens(value):
    """The opcodes of a pickle with their arguments."""
    starts = [at for _, _, at in pickletools.genops(value)]
    return tuple(value[at:end] for at, end in zip(starts, [*starts[1:], len(value)], strict=True))


def _number(rng):
    value = rng.choice(embeddings.NUMBERS)
    size = (value.bit_length() + 8) // 8
    packed = value.to_bytes(size, "little", signed=True)
    return b"\x8a" + bytes([size]) + packed if size < 256 else b"\x8b" + struct.pack("<i", size) + packed


def _text(rng):
    text = embeddings.name(rng).encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(text)) + text


def fragment(rng):
    """A few opcodes that do not belong here."""
    pick = rng.random()
    if pick < 0.25:
        return rng.choice(ATTACKS)
    if pick < 0.4:
        return _number(rng)
    if pick < 0.6:
        return _text(rng)
    return rng.choice(ODD)


def operations(rng, value):
    """The pickle with some opcodes lost, doubled, swapped, replaced or added."""
    found = list(tokens(value))
    texts = [at for at, token in enumerate(found) if token[:1] == b"X"]
    numbers = [at for at, token in enumerate(found) if token[:1] in (b"K", b"M", b"J")]
    for _ in range(rng.choice((1, 1, 2, 3, 6))):
        at, pick = rng.randrange(len(found)), rng.random()
        if pick < 0.2 and numbers:
            found[rng.choice(numbers) % len(found)] = _number(rng)
        elif pick < 0.4 and texts:
            found[rng.choice(texts) % len(found)] = _text(rng)
        elif pick < 0.5 and len(found) > 2:
            del found[at]
        elif pick < 0.6:
            found.insert(at, found[rng.randrange(len(found))])
        elif pick < 0.7:
            other = rng.randrange(len(found))
            found[at], found[other] = found[other], found[at]
        elif pick < 0.85:
            found[at] = fragment(rng)
        else:
            found.insert(at, fragment(rng))
    return b"".join(found)


def archive(rng, parts):
    """Further members, packed ones, bombs, nested zips, names twice."""
    names = ("archive/x", "archive/data/0", "archive/data.pkl", "data.pkl", "../up", "/abs", "archive/data/../../x",
             "é" * 300, "other/data.pkl", "archive/code/evil.py", "archive/byteorder")  # fmt: skip
    nested = torch_seeds.zipped(parts)
    more = []
    for _ in range(rng.choice((1, 1, 2))):
        data = rng.choice((b"", b"big", b"x" * 100, nested, bytes(1 << 18)))
        more.append((rng.choice(names), data, rng.random() < 0.3))
    return torch_seeds.zipped(parts, more)


def mutate(rng, parts):
    """A file with a damaged pickle and true checksums, a damaged archive, or damaged storages."""
    pick = rng.random()
    if pick < 0.75:
        value = operations(rng, parts.value)
        return parts.with_value(plain.mutate(rng, value, 1) if rng.random() < 0.1 else value).file()
    if parts.form == "zip":
        data = bytearray(archive(rng, parts) if pick < 0.85 else torch_seeds.zipped(parts))
        at = data.rfind(b"PK\x01\x02") if rng.random() < 0.5 else data.rfind(b"PK\x05\x06")
        return bytes(data[:at]) + plain.mutate(rng, bytes(data[at:])) if rng.random() < 0.7 else bytes(data)
    data = parts.file()
    at = data.rindex(parts.value) + len(parts.value)
    return data[:at] + plain.mutate(rng, data[at:])
