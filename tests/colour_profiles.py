"""ICC profiles for tests, written by hand: of displays (a matrix), of gray, and of a printer (a table)."""

from __future__ import annotations

import struct
from itertools import product

Primaries = tuple[tuple[float, float, float], ...]
SRGB: Primaries = ((0.43607, 0.22249, 0.01392), (0.38515, 0.71687, 0.09708), (0.14307, 0.06061, 0.71410))
DISPLAY_P3: Primaries = ((0.51512, 0.24120, -0.00105), (0.29198, 0.69225, 0.04189), (0.15710, 0.06657, 0.78407))
ADOBE_RGB: Primaries = ((0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457))
WHITE = (0.9642, 1.0, 0.8249)  # D50


def display(primaries: Primaries, gamma: float | None = None) -> bytes:
    """A profile of red, green and blue with these primaries; the curve is sRGB's, or a gamma."""
    colours = {f"{name}XYZ": _xyz(xyz) for name, xyz in zip("rgb", primaries, strict=True)}
    return _profile(b"mntr", b"RGB ", b"XYZ ", colours | {f"{name}TRC": _curve(gamma) for name in "rgb"})


def gray(gamma: float) -> bytes:
    """A profile of gray."""
    return _profile(b"mntr", b"GRAY", b"XYZ ", {"kTRC": _curve(gamma)})


def printer() -> bytes:
    """A profile of cyan, magenta, yellow and black, whose full cyan is Lab (60, -40, -40)."""
    table = bytearray()
    for cyan, magenta, yellow, black in product((0, 1), repeat=4):
        light = max(0.0, (100 - 40 * cyan - 40 * magenta - 10 * yellow) * (1 - black))
        a, b = (70 * magenta - 40 * cyan, 80 * yellow - 40 * cyan) if not black else (0, 0)
        table += bytes((round(light * 2.55), a + 128, b + 128))
    identity = struct.pack(">9i", 65536, 0, 0, 0, 65536, 0, 0, 0, 65536)
    head = b"mft1" + bytes(4) + bytes((4, 3, 2, 0)) + identity
    return _profile(
        b"prtr", b"CMYK", b"Lab ", {"A2B0": head + bytes(range(256)) * 4 + bytes(table) + bytes(range(256)) * 3}
    )


def _xyz(xyz: tuple[float, ...]) -> bytes:
    return b"XYZ " + bytes(4) + struct.pack(">3i", *(round(value * 65536) for value in xyz))


def _curve(gamma: float | None) -> bytes:
    values = (gamma,) if gamma else (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
    kind = 0 if gamma else 3
    return b"para" + bytes(4) + struct.pack(f">HH{len(values)}i", kind, 0, *(round(one * 65536) for one in values))


def _profile(kind: bytes, space: bytes, connection: bytes, tags: dict[str, bytes]) -> bytes:
    text = "test".encode("utf-16-be")
    named = b"mluc" + bytes(4) + struct.pack(">IIHHII", 1, 12, 0x656E, 0x5553, len(text), 28) + text
    tags = {"desc": named, "cprt": named, "wtpt": _xyz(WHITE)} | tags
    at, directory, data = 132 + 12 * len(tags), b"", b""
    for name, content in tags.items():
        content += bytes(-len(content) % 4)
        directory += name.encode() + struct.pack(">II", at + len(data), len(content))
        data += content
    head = struct.pack(">I4sI4s4s4s12x4s", at + len(data), b"lcms", 0x04200000, kind, space, connection, b"acsp")
    head += bytes(28) + struct.pack(">3i", *(round(value * 65536) for value in WHITE))
    return head + bytes(128 - len(head)) + struct.pack(">I", len(tags)) + directory + data
