"""Hostile model folders, single files, images and captions: a valid tiny model and its data with one or two changes."""

from __future__ import annotations

import json
import os
import random
import shutil
import socket
import struct
import tempfile
import zlib
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

from .case import Case

COMMANDS = (("check", "recipe.toml"), ("plan", "recipe.toml"), ("run", "recipe.toml", "--out", "out"),
            ("tokens", "a photo", "--model", "./model", "--family", "sd1"))  # fmt: skip
VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2, 3, 7, 10**9, 10**30, -(10**9), 0.5, -0.5, 1e300, float("nan"), float("inf"), "",
    "x", "abc", "../../outside/private.txt", "name/kernel", [], {}, [None, None], [1, 2], [10**9], ["x"], {"a": 1},
    [[[[]]]], "a" * 100_000,
)  # fmt: skip
EXTRA = (
    {"_attn_implementation": "name/kernel"}, {"attn_implementation": "a/b:c"},
    {"auto_map": {"AutoModel": "evil.Model"}},
    {"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}}, {"num_hidden_layers": 10**9},
    {"tokenizer_class": 5}, {"model_max_length": "abc"}, {"_class_name": "Evil"}, {"architectures": ["Evil"]},
    {"custom_pipeline": "evil"}, {"torch_dtype": "evil"}, {"dtype": 5}, {"scaling_factor": None},
)  # fmt: skip
CONTENTS = (
    b"", b"{", b"[]", b"null", b"5", b"[null, null]", b"{}", b"\xff\xfe", b"\x00" * 100, b"[" * 100_000,
    b'{"a":' * 50_000 + b"1" + b"}" * 50_000, b'{"a": ' + b"9" * 5000 + b"}", b"a b\n" * 1000, b'{"a": "\\ud800"}',
    b'{"model": 5}', b" " * (9 << 20),
)  # fmt: skip
RECIPE = """name = "a"
[model]
{model}
[[concept]]
images = "images"
captions = {captions}
[[embedding]]
placeholder = "<zzz>"
initial_text = "ring"
[[stage]]
kind = "tokenize"
[[stage]]
kind = "inject"
[[stage]]
kind = "train"
steps = 1
learning_rate = 1e-2
[[stage]]
kind = "export"
targets = ["a1111"]
"""


def cases(draw: random.Random) -> Iterator[Case]:
    """Endless cases."""
    while True:
        kind = draw.choices((_config, _file, _header, _single, _data), (8, 4, 2, 2, 5))[0]
        name, change, model, captions = kind(draw)
        arguments = draw.choice(COMMANDS)
        yield Case(f"{name}: {arguments[0]}", partial(_arrange, change, model, captions), arguments)


def _arrange(change: Callable[[Path], None], model: str, captions: str, folder: Path) -> None:
    shutil.copytree(good(), folder, dirs_exist_ok=True)
    (folder / "recipe.toml").write_text(RECIPE.format(model=model, captions=captions), "utf-8")
    change(folder)


@cache
def good() -> Path:
    """A folder with a valid tiny model, four images and their captions."""
    from PIL import Image
    from tiny import tiny_sd

    folder = Path(tempfile.mkdtemp(prefix="hostile-good-"))
    tiny_sd().save_pretrained(folder / "model")
    (folder / "images").mkdir()
    for number in range(4):
        Image.new("RGB", (24, 24), (60 * number, 9, 9)).save(folder / "images" / f"{number}.png")
        (folder / "images" / f"{number}.txt").write_text("a <zzz> ring\n")
    return folder


Made = tuple[str, Callable[[Path], None], str, str]
FOLDER, BESIDE = 'base = "model"\nfamily = "sd1"', '"beside"'


def _jsons() -> list[str]:
    return sorted(path.relative_to(good()).as_posix() for path in (good() / "model").rglob("*.json"))


def _config(draw: random.Random) -> Made:
    """One or two values of a config, at any depth, are replaced."""
    names = [name for name in _jsons() if os.path.basename(name) not in ("tokenizer.json", "vocab.json")]
    name = draw.choice(names)
    value = json.loads((good() / name).read_text("utf-8"))
    changes = []
    for _ in range(draw.choice((1, 1, 1, 2))):
        if draw.random() < 0.25:
            extra = draw.choice(EXTRA)
            value |= extra
            changes.append(str(extra))
            continue
        key = draw.choice(list(value))
        inner, at = value, key
        while isinstance(inner[at], (list, dict)) and inner[at] and draw.random() < 0.5:
            inner = inner[at]
            at = draw.choice(list(inner)) if isinstance(inner, dict) else draw.randrange(len(inner))
        inner[at] = draw.choice(VALUES)
        if draw.random() < 0.15:
            value.pop(key)
        changes.append(f"{key} = {str(inner.get(at, 'gone') if isinstance(inner, dict) else inner[at])[:30]}")
    text = json.dumps(value)
    return f"{name}: {' and '.join(changes)}", lambda folder: _put(folder / name, text.encode()), FOLDER, BESIDE


def _put(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def _file(draw: random.Random) -> Made:
    """A file is missing, of another kind, a link, or has other content."""
    names = sorted(path.relative_to(good()).as_posix() for path in (good() / "model").rglob("*"))
    name = draw.choice(names)
    what = draw.choice(("gone", "renamed", "content", "content", *SPECIAL))
    if name.endswith(".safetensors") and what == "private":
        what = "dangling"  # large weights may be links to a shared copy
    content = draw.choice(CONTENTS)

    def change(folder: Path) -> None:
        path = folder / name
        if what == "renamed":
            path.rename(path.with_name("other"))
            return
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        if what == "content":
            path.write_bytes(content)
        elif what in SPECIAL:
            SPECIAL[what](path)

    return f"{name}: {what} {content[:20]!r}", change, FOLDER, BESIDE


def _socket(path: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    finally:
        os.chdir(here)


def _outside(path: Path) -> str:
    folder = path.parent
    while not (folder / "outside").is_dir():
        folder = folder.parent
    return str(folder / "outside")


SPECIAL: dict[str, Callable[[Path], None]] = {
    "fifo": lambda path: os.mkfifo(path),
    "device": lambda path: path.symlink_to("/dev/zero"),
    "socket": _socket,
    "folder": lambda path: path.mkdir(),
    "dangling": lambda path: path.symlink_to("nowhere"),
    "loop": lambda path: path.symlink_to(path.name),
    "private": lambda path: path.symlink_to(_outside(path) + "/private.txt"),
    "outside": lambda path: path.symlink_to(_outside(path)),
}


def _header(draw: random.Random) -> Made:
    """The header of a weight file is wrong."""
    names = sorted(path.relative_to(good()).as_posix() for path in (good() / "model").rglob("*.safetensors"))
    name, way = draw.choice(names), draw.randrange(7)
    number = draw.random()

    def change(folder: Path) -> None:
        content = (folder / name).read_bytes()
        size = struct.unpack("<Q", content[:8])[0]
        head = json.loads(content[8 : 8 + size])
        key = sorted(head)[int(number * len(head))]
        if way == 0:
            head.pop(key)
        elif way == 1:
            head[key] = {"dtype": "F32", "shape": [10**9, 10**9], "data_offsets": [0, 4]}
        elif way == 2:
            head[key] = {"dtype": "I64", "shape": [1], "data_offsets": [0, 8]}
        elif way == 3:
            head = {}
        elif way == 4:
            head["evil"] = head[key]
        text = json.dumps(head).encode()
        length = 2**62 if way == 5 else len(text)
        made = struct.pack("<Q", length) + text + content[8 + size :]
        (folder / name).write_bytes(made[: len(made) // 2] if way == 6 else made)
        if number < 0.3:
            index = {"metadata": {}, "weight_map": {key: "../../../outside/private.txt"}}
            (folder / f"{name}.index.json").write_text(json.dumps(index))

    return f"{name}: header {way}", change, FOLDER, BESIDE


def _single(draw: random.Random) -> Made:
    """A single file that is not a checkpoint, or a base or config that is an odd path."""
    way = draw.choice(("int", "list", "state", "text", "special", "base"))
    name = draw.choice(("m.ckpt", "m.safetensors"))
    special = draw.choice(sorted(SPECIAL))

    def change(folder: Path) -> None:
        import torch

        path = folder / name
        made = {"int": 5, "list": [torch.ones(2)], "state": {"state_dict": {"a": torch.ones(2), "b": "x"}}}
        if way in made:
            torch.save(made[way], path)
        elif way == "text":
            path.write_bytes(b"nothing")
        else:
            SPECIAL[special](path)

    config = draw.choice(("model", "recipe.toml", "nowhere", name))
    model = f'base = "{name}"\nfamily = "sd1"\nconfig = "./{config}"'
    if way == "base":
        model = f'base = "./{name}"\nfamily = "sd1"'
    return f"{name}: {way} {special}, config {config}", change, model, BESIDE


def _data(draw: random.Random) -> Made:
    """Images, masks, captions and tables that are invalid."""
    way = draw.choice(("image", "caption", "table", "surrogate", "name", "bomb", "long", "mask", "text", "pixels"))
    # links to images elsewhere are allowed and followed
    special = draw.choice(sorted(SPECIAL.keys() - {"private", "outside"}))
    content = draw.choice(CONTENTS)
    name = draw.choice(("a\nb.png", "a\x1b[31mb.png", "a\udcffb.png", "a\x9b31m.png", "a\r.png"))
    table = way in ("table", "surrogate")

    def change(folder: Path) -> None:
        images = folder / "images"
        target = {"image": "0.png", "caption": "0.txt", "table": "t.jsonl", "mask": "0-mask.png"}.get(way)
        if target is not None:
            path = folder / target if table else images / target
            path.unlink(missing_ok=True)
            SPECIAL[special](path)
        elif way == "surrogate":
            rows = [json.dumps({"file_name": f"{number}.png", "text": "a \ud800 <zzz>"}) for number in range(4)]
            (folder / "t.jsonl").write_text("\n".join(rows))
        elif way == "name":
            (images / "0.png").rename(images / name)
            (images / "0.txt").rename(images / name.replace(".png", ".txt"))
        elif way == "bomb":
            (images / "0.png").write_bytes(_bomb(draw_size))
        elif way == "long":
            (images / "0.txt").write_text("<zzz> embedding " * 110_000)
        else:
            (images / ("0.txt" if way == "text" else "0.png")).write_bytes(content)

    draw_size = draw.choice((7000, 12_000, 20_000))
    return f"data: {way} {special} {name!r}", change, FOLDER, '"t.jsonl"' if table else BESIDE


@cache
def _bomb(side: int) -> bytes:
    """A PNG of one grey, `side` pixels square, that is small as a file."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    press = zlib.compressobj(9)
    rows = b"".join(press.compress(bytes(1 + 3 * side)) for _ in range(side)) + press.flush()
    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
