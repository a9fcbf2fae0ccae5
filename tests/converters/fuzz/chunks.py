"""Damage to A1111's images: chunks with true checksums, sizes that lie, JSON and packed data that are odd."""

import json
import struct
import zlib
from functools import cache

from fuzz import embeddings, headers, images, plain

BOMB = zlib.compress(bytes(1 << 20))
DEEP = zlib.compress(b"[" * 100_000)
_content = cache(images.content)


def _chunks(data):
    at, found = 8, []
    while at + 12 <= len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        found.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + size]))
        at += 12 + size
    return found


def _joined(found):
    return b"\x89PNG\r\n\x1a\n" + b"".join(images.chunk(kind, data) for kind, data in found)


def chunk_damage(rng, data):
    found = _chunks(data)
    for _ in range(rng.choice((1, 1, 2))):
        at, pick = rng.randrange(len(found)), rng.random()
        kind, inner = found[at]
        if pick < 0.3:
            found[at] = kind, plain.mutate(rng, inner)
        elif pick < 0.45:
            found.insert(at, found[rng.randrange(len(found))])
        elif pick < 0.6 and len(found) > 1:
            del found[at]
        elif pick < 0.75:
            sizes = [rng.choice((0, 1, 8, 16, 5000, 60_000, 2**31 - 1, 2**31, 2**32 - 1)) for _ in range(2)]
            found[0] = (
                b"IHDR",
                struct.pack(">IIBBBBB", *sizes, *rng.choice(((8, 2), (8, 6), (16, 2), (1, 0), (8, 3))), 0, 0, 0),
            )
        else:
            name = rng.choice(
                (b"zTXt", b"iTXt", b"tEXt", b"eXIf", b"iCCP", b"acTL", b"fcTL", b"fdAT", b"PLTE", b"tRNS")
            )
            text = rng.choice(
                (images.CHUNK + b"\0\0" + BOMB, images.CHUNK + b"\0\1\0\0\0" + BOMB, rng.randbytes(30), b"")
            )
            found.insert(at, (name, text))
    return _joined(found)


def _odd_content(rng):
    """JSON as A1111 writes it with something in it that it never writes."""
    loaded = json.loads(_content(rng.choice((1, 3, 3, 3, 3, 768)), rng.choice((1, 2))))
    rows = loaded["string_to_param"]["*"]["TORCHTENSOR"]
    pick = rng.random()
    if pick < 0.4:
        rows[0][rng.randrange(len(rows[0]))] = rng.choice(headers.NASTY)
    elif pick < 0.6:
        odd = ([[]], [[[]]], [[], []], [[1], [1, 2]], [0.1] * 768, [[[[[[1]]]]]], rows[0], [rows])
        loaded["string_to_param"]["*"]["TORCHTENSOR"] = rng.choice((*headers.NASTY, *odd))
    elif pick < 0.8:
        loaded["string_to_param"][embeddings.name(rng)] = rng.choice((loaded["string_to_param"]["*"], *headers.NASTY))
    else:
        loaded[rng.choice(("name", "step", "string_to_param", "x"))] = rng.choice((*headers.NASTY, *embeddings.HOSTILE))
    text = json.dumps(loaded).encode()
    return plain.mutate(rng, text, 1) if rng.random() < 0.2 else text


def mutate(rng, data):
    """Either damaged chunks, or a whole image around damaged content."""
    pick = rng.random()
    if pick < 0.5:
        return chunk_damage(rng, data)
    if pick < 0.97:
        return images.with_chunk(_odd_content(rng))
    packed = rng.choice((zlib.compress(_odd_content(rng)), zlib.compress(_odd_content(rng)), BOMB, DEEP))
    return images.with_pixels(plain.mutate(rng, packed) if rng.random() < 0.5 else packed)
