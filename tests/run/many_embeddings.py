"""Trains embeddings by the thousand in one run, kills it when nine of ten are done, resumes it, counts the files.

By hand: python tests/run/many_embeddings.py --embeddings 10000
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image

COLOURS = ("red", "green", "blue", "yellow", "purple", "orange", "pink", "teal")
RECIPE = """
name = "thousands"
seed = 5
device = "cpu"
[model]
base = "micro"
[[embeddings_from]]
folders = "things"
embedding = {{ placeholder = "<{{name}}>", initial_text = "circle", stop_after = "1 own steps" }}
concept = {{ captions = ["a photo of {{placeholder}}"] }}
[data]
cache_latents = "memory"
[checkpoint]
every = "{every} steps"
[[stage]]
kind = "tokenize"
[[stage]]
kind = "inject"
[[stage]]
kind = "train"
steps = {steps}
batch_size = {batch}
log_every = 10
[[stage]]
kind = "export"
targets = ["comfyui"]
[samples]
count = 1
steps = 4
"""


def make(folder: Path, count: int, batch: int) -> Path:
    """A folder of one image for each embedding, and a recipe in which every embedding has its own step."""
    draw = random.Random(count)
    for number in range(count):
        place = folder / "things" / f"{COLOURS[number % len(COLOURS)]} thing {number}"
        place.mkdir(parents=True)
        Image.new("RGB", (64, 64), tuple(draw.randrange(256) for _ in range(3))).save(place / "1.png")
    steps = -(-count // batch)
    path = folder / "recipe.toml"
    path.write_text(RECIPE.format(steps=steps, batch=batch, every=max(1, steps // 4)), "utf-8")
    return path


def run(path: Path, out: Path, until: int | None = None) -> int:
    """The exit code of the run; with `until` it is killed (-9) as soon as so many embeddings are done."""
    process = subprocess.Popen([sys.executable, "-m", "pivotune", "run", str(path), "--out", str(out)])
    while until is not None and process.poll() is None:
        if len(done(out)) >= until:
            process.kill()
        time.sleep(0.05)
    return process.wait()


def done(out: Path) -> list[str]:
    """The embeddings whose files are there, as their list says."""
    try:
        lines = (out / "finished/finished.jsonl").read_bytes()
    except FileNotFoundError:
        return []
    return [json.loads(line)["embedding"] for line in lines[: lines.rfind(b"\n") + 1].splitlines()]


def files(folder: Path) -> dict[str, str]:
    """SHA-256 of each embedding's file by its path."""
    found = sorted(folder.rglob("*.safetensors"))
    return {os.path.relpath(path, folder): hashlib.sha256(path.read_bytes()).hexdigest() for path in found}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--embeddings", type=int, default=10_000)
    parser.add_argument("--batch", type=int, default=50)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path, out = make(folder, args.embeddings, args.batch), folder / "run"
        begin = time.monotonic()
        code = run(path, out, until=args.embeddings * 9 // 10)
        if code != -signal.SIGKILL:
            sys.stderr.write(f"the run was at its end (exit code {code}) before it could be killed\n")
            return 1
        before, embeddings = files(out / "finished"), len(done(out))
        if run(path, out):
            return 1
        seconds = time.monotonic() - begin
        manifest = json.loads((out / "manifest.json").read_text("utf-8"))
        after = files(out / "exports")
        lost = [place for place, digest in before.items() if after.get(place) != digest]
        counts = manifest["proofs"]["embeddings"]
        page = (out / "report.html").stat().st_size / 2**20
    memory = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    summary = ", ".join(f"{number:,} {what}" for what, number in counts.items())
    sys.stdout.write(
        f"killed when {embeddings:,} embeddings were done: {len(lost)} of {len(before):,} files differ at the end\n"
        f"embeddings trained: {summary} ({seconds:.0f} s, at most {memory:.2f} GiB of memory, report {page:.1f} MB)\n"
    )
    return int(bool(lost) or set(counts.values()) != {args.embeddings})


if __name__ == "__main__":
    sys.exit(main())
