"""Hostile run folders: manifests, metrics, checkpoints, links, pipes."""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import shutil
import sys
import tempfile
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

from hostile.case import Case

VALUES: tuple[Any, ...] = (
    None, True, -1, 0, 10**30, 1.5, 1e308, "", "x", "../../outside/private.txt", "/etc/passwd", "a\0b", "\ud800",
    "\x1b[31m\n", [], {}, [None], [[]], {"": {}}, {"a": [1, {"b": None}]}, "x" * 100_000,
)  # fmt: skip
RAW = (b"", b"{", b"[" * 100_000, b"\xff\xfe", b'{"status": NaN}', b"null", b"5", b"[]", b"\0" * 999, b"1" * 5000)
FILES = (
    "exports", "images", "checkpoints", "finished", "last-good", "saves", "latents", "recipe.toml", "manifest.json",
    "metrics.jsonl", "report.html", ".lock", ".probe", ".manifest.json.part", "tracking", "exports/diffusers",
    ".last-good.old", ".finished.old", "images/before-000-0.png",
)  # fmt: skip
MODEL = Path(__file__).resolve().parents[2] / "recipes"


def cases(draw: random.Random) -> Iterator[Case]:
    """Endless cases, drawn by `draw`."""
    while True:
        attack = draw.choice((_manifest, _manifest, _metrics, _checkpoint, _checkpoint, _planted, _planted))
        seed = draw.getrandbits(32)
        name, arguments = draw.choice(
            (
                ("report", ("report", "run")),
                ("replay", ("replay", "run", "--out", "again")),
                ("resume", (*_command(), "--out", "run")),
                ("source", (*_command(), "--out", "new", "--from-checkpoint", "run")),
            )
        )
        finished = name == "replay" or (name == "report" and draw.random() < 0.5)
        arrange = partial(_arrange, attack=attack, seed=seed, finished=finished)
        yield Case(f"{name} {attack.__name__} {seed}", arrange, arguments, (MODEL, _good()))


def _command() -> tuple[str, ...]:
    return ("run", "quickstart", "--set", "train.steps=4", "--set", "samples.count=1", "--set", "samples.steps=1")


def _arrange(work: Path, *, attack: Any, seed: int, finished: bool) -> None:
    shutil.copytree(_good(), work / "run")
    if not finished:
        manifest = json.loads((work / "run" / "manifest.json").read_text("utf-8"))
        manifest |= {"status": "failed", "error": "made up"}
        (work / "run" / "manifest.json").write_text(json.dumps(manifest), "utf-8")
    attack(work / "run", random.Random(seed))


@cache
def _good() -> Path:
    """A valid run, made once."""
    from pivotune.pipeline.cli import main as cli

    folder = Path(tempfile.mkdtemp(prefix="hostile-good-")) / "run"
    before, sys.argv = sys.argv, ["pivotune", *_command(), "--out", str(folder)]
    quiet = io.StringIO()
    with contextlib.redirect_stdout(quiet), contextlib.redirect_stderr(quiet), contextlib.suppress(SystemExit):
        cli.main()
    sys.argv = before
    return folder


def _mutated(value: Any, draw: random.Random) -> Any:
    """The value with one of its inner values replaced, or one key removed."""
    if isinstance(value, dict) and value and draw.random() < 0.9:
        key = draw.choice(list(value))
        if draw.random() < 0.1:
            return {other: one for other, one in value.items() if other != key}
        return {**value, key: _mutated(value[key], draw)}
    if isinstance(value, list) and value and draw.random() < 0.9:
        at = draw.randrange(len(value))
        return [*value[:at], _mutated(value[at], draw), *value[at + 1 :]]
    return draw.choice(VALUES)


def _manifest(run: Path, draw: random.Random) -> None:
    path = run / "manifest.json"
    if draw.random() < 0.1:
        path.write_bytes(draw.choice(RAW))
        return
    value = json.loads(path.read_text("utf-8"))
    for _ in range(draw.choice((1, 1, 2, 5))):
        value = _mutated(value, draw)
    path.write_text(json.dumps(value), "utf-8")


def _metrics(run: Path, draw: random.Random) -> None:
    path = run / "metrics.jsonl"
    data = path.read_bytes()
    rows = [json.loads(line) for line in data.splitlines()]
    at = draw.randrange(len(rows))
    rows[at] = _mutated({**rows[at], "images": [{"path": "../../outside/private.txt", "prompt": "", "seed": 0}]}, draw)
    changed = b"".join(json.dumps(row).encode() + b"\n" for row in rows)
    flipped = bytes([data[0] ^ 1]) + data[1:]
    path.write_bytes(draw.choice((changed, changed, changed, flipped, data[:99], draw.choice(RAW))))
    if draw.random() < 0.1:
        path.unlink()


def _checkpoint(run: Path, draw: random.Random) -> None:
    """Other facts or tensors in a checkpoint, with a matching hash."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    from pivotune.pipeline.run.checkpoints import _digest

    path = next((run / "checkpoints").iterdir())
    with safe_open(path, "pt") as file:
        metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    head = json.loads(metadata["checkpoint"])
    if draw.random() < 0.7:
        head = _mutated(head, draw)
    else:
        name = draw.choice(list(tensors))
        kind = draw.randrange(3)
        if kind == 0:
            del tensors[name]
        else:
            tensors[name] = tensors[name].double() if kind == 1 else tensors[name].flatten()[:1].clone()
    text = json.dumps(head)
    with contextlib.suppress(UnicodeEncodeError):
        save_file(tensors, path, {**metadata, "checkpoint": text, "sha256": _digest(text, tensors)})


def _planted(run: Path, draw: random.Random) -> None:
    """A link, a hard link, a pipe or a folder in place of a file of the run."""
    path = run / draw.choice(FILES)
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    path.parent.mkdir(exist_ok=True)
    outside = run.parent.parent / "outside"
    how = draw.randrange(6)
    if how == 0:
        path.symlink_to(outside)
    elif how == 1:
        path.symlink_to(outside / "private.txt")
    elif how == 2:
        path.symlink_to("/dev/zero")
    elif how == 3:
        os.link(outside / "private.txt", path)
    elif how == 4:
        os.mkfifo(path)
    else:
        path.mkdir()
