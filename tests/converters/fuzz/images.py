"""A1111's images with an embedding in them, chunk and pixel variant, written without an image library."""

import base64
import json
import random
import struct
import zlib

CHUNK = b"sd-ti-embedding"
HEIGHT = 24


def content(width=768, rows=1):
    """The JSON that A1111 puts into an image."""
    source = random.Random(3)
    numbers = [[struct.unpack("<f", struct.pack("<f", source.uniform(-0.1, 0.1)))[0] for _ in range(width)]
               for _ in range(rows)]  # fmt: skip
    param = {"*": {"TORCHTENSOR": numbers}}
    more = {"name": "cat", "step": 9, "sd_checkpoint": "abc", "sd_checkpoint_name": None}
    return json.dumps({"string_to_token": {"*": 265}, "string_to_param": param, **more}).encode()


def chunk(kind, data):
    """One chunk of a PNG, with a true checksum."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width, height, pixels, text=None):
    """An RGB image; `text` goes into A1111's chunk."""
    rows = b"".join(b"\0" + pixels[y * 3 * width : (y + 1) * 3 * width] for y in range(height))
    chunks = [chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))]
    if text is not None:
        chunks.append(chunk(b"tEXt", CHUNK + b"\0" + base64.b64encode(text)))
    chunks += [chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def with_chunk(text):
    """The chunk variant around a small red image."""
    return png(8, 8, b"\xff\0\0" * 64, text)


def with_pixels(packed):
    """The pixel variant: low halves left of the image, high halves right of it, dark columns between."""
    packed = packed or b"\0"
    size = len(packed) + HEIGHT - len(packed) % HEIGHT
    size += 3 * HEIGHT - size % (3 * HEIGHT)
    packed = (packed * (size // len(packed) + 1))[:size]
    seed, low, high, source = 0, bytearray(), bytearray(), random.Random(1)
    for value in packed:
        seed = (1664525 * seed + 1013904223) % 2**32
        key = seed % 255 & 15
        low.append((value & 15) ^ key | source.randrange(1, 16) << 4)
        high.append(value >> 4 ^ key | source.randrange(1, 16) << 4)
    stride = size // HEIGHT
    image = bytes(source.randrange(17, 256) | 1 for _ in range(8 * HEIGHT * 3))
    rows = (
        low[y * stride : (y + 1) * stride] + b"\0\0\0" + image[y * 24 : (y + 1) * 24] + b"\0\0\0"
        + high[y * stride : (y + 1) * stride]
        for y in range(HEIGHT)
    )  # fmt: skip
    return png(2 * (stride // 3) + 10, HEIGHT, b"".join(rows))


def all_images():
    """Both variants, and an image without an embedding."""
    noise = random.Random(4).randbytes(16 * 16 * 3)
    return {
        "image, chunk": with_chunk(content()),
        "image, pixels": with_pixels(zlib.compress(content(), 9)),
        "image without": png(16, 16, noise),
    }
