"""Corrupt, truncated or unsupported image files and the messages about them; written by hand where Pillow cannot."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo


def png(folder: Path, rows: bytes, depth: int, colour: int, width: int = 8, height: int = 8) -> Path:
    """Write a PNG file by hand, for kinds that Pillow reads but does not write."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    data = b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    (folder / "a.png").write_bytes(data)
    return folder / "a.png"


def broken(folder: Path) -> None:
    """Write every file of BROKEN but the missing one."""
    noise = Image.effect_noise((64, 64), 90)
    for name in ("cut.png", "cut.jpg", "cut.webp"):
        noise.save(folder / name)
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: len(data) // 2])
    (folder / "text.png").write_text("no image", "utf-8")
    (folder / "empty.png").write_bytes(b"")
    (folder / "folder.png").mkdir()
    about = PngInfo()
    about.add_text("comment", "x" * 2_000_000, zip=True)  # more than Pillow will unpack
    Image.new("RGB", (8, 8)).save(folder / "bomb.png", pnginfo=about)
    png(folder, b"", 8, 2, 30_000, 30_000).rename(folder / "huge.png")
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    for name in ("moving.webp", "moving.gif", "moving.png", "pages.tif"):
        frames[0].save(folder / name, save_all=True, append_images=frames[1:])
    Image.new("F", (8, 8)).save(folder / "float.tif")
    (folder / "phone.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(20))


BROKEN = [
    ("cut.png", "not a readable image"),
    ("cut.jpg", "not a readable image"),
    ("cut.webp", "image"),
    ("text.png", "the file is not an image"),
    ("empty.png", "the file is empty"),
    ("missing.png", "No such file"),
    ("folder.png", "Is a directory"),
    ("bomb.png", "not a readable image"),
    ("huge.png", "too large to be opened safely"),
    ("moving.webp", "2 frames of an animation; save each as a separate file"),
    ("moving.gif", "2 frames of an animation"),
    ("moving.png", "2 frames of an animation"),
    ("pages.tif", "2 pages"),
    ("float.tif", "floating-point"),
    ("phone.heic", "a HEIC image; pip install pillow-heif"),
]
