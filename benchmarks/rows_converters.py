"""Converters beside what everybody does (load all with torch, save all) and beside a plain copy of the file."""

from __future__ import annotations

import shutil
import struct
import sys
import tempfile
from pathlib import Path

from measure import Child, Row, child, ratios

from pivotune.converters import safetensors_file
from pivotune.converters.tensor import RawTensor

ROUNDS = 5
FEWER = 3  # rounds of ten thousand files
FOR_A1111 = ("--for", "a1111")
MODULES = 722  # of an SDXL LoRA: three tensors each
PIVOTUNE = [sys.executable, "-m", "pivotune"]
NAIVE = """
import sys; from pathlib import Path; from safetensors.torch import load_file, save_file
tensors = load_file(sys.argv[1])
for path in Path(sys.argv[2]).iterdir():
    tensors |= {f"bundle_emb.{path.stem}.{key}": tensor for key, tensor in load_file(path).items()}
save_file(tensors, sys.argv[3])
"""
NAIVE_BACK = """
import sys; from pathlib import Path; from safetensors.torch import load_file, save_file
tensors, embeddings = load_file(sys.argv[1]), {}
for name in [name for name in tensors if name.startswith("bundle_emb.")]:
    _, embedding, key = name.split(".")
    embeddings.setdefault(embedding, {})[key] = tensors.pop(name)
save_file(tensors, sys.argv[3])
for embedding, vectors in embeddings.items():
    save_file(vectors, Path(sys.argv[2]) / f"{embedding}.safetensors")
"""
PEAK = """
import sys
from pivotune.pipeline.cli.main import pivotune
pivotune(sys.argv[1:], standalone_mode=False)
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""  # the ru_maxrss that a parent gets begins with the parent's own size
KEYS = """
import sys, time; from {module} import {name}
begin = time.process_time_ns()
{call}
print(time.process_time_ns() - begin)
"""


def rows() -> list[Row]:
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        return [*_bundles(place), *_large(place), *_many_embeddings(place), *_small(place), *_header(place)]


def _bundles(place: Path) -> list[Row]:
    lora, embeddings = make_lora(place / "lora.safetensors", 200), make_embeddings(place / "embeddings", 100)
    found: dict[str, list[Child]] = {}

    def run(name: str, *command: object) -> None:
        found.setdefault(name, []).append(child([str(part) for part in command]))

    for warm in ([*PIVOTUNE, "bundle", "--help"], [*PIVOTUNE, "unbundle", "--help"]):
        child(warm)
    for number in range(ROUNDS):
        copy, copies = place / f"c{number}.safetensors", place / f"c{number}"
        run("cp", "cp", lora, copy)
        ours, naive, back = place / f"o{number}.safetensors", place / f"n{number}.safetensors", place / f"b{number}"
        back.mkdir()
        run("ours", *PIVOTUNE, "bundle", lora, embeddings, "--out", ours)
        run("naive", sys.executable, "-c", NAIVE, lora, embeddings, naive)
        run("back", *PIVOTUNE, "unbundle", ours, "--out", place / f"u{number}", "--for", "a1111")
        run("naive back", sys.executable, "-c", NAIVE_BACK, naive, back, back / "lora.safetensors")
        run("cp back", "cp", "-r", place / f"u{number}", copies)
        for used in (ours, naive, copy):
            used.unlink()
        shutil.rmtree(copies)
        shutil.rmtree(back)
        shutil.rmtree(place / f"u{number}")
    peaks = [_peak("bundle", lora, embeddings, "--out", place / "peak.safetensors")]
    lora.unlink()
    (place / "peak.safetensors").unlink()
    cpu = {name: [one.cpu for one in children] for name, children in found.items()}
    wall = {name: [one.wall for one in children] for name, children in found.items()}
    of = "of torch's load and save"
    return [
        Row("bundle, 200 MB, 100 embeddings: CPU time", f"<= 0.12 {of}", 0.12, ratios(cpu["ours"], cpu["naive"])),
        Row("bundle, 200 MB, 100 embeddings: wall time", f"<= 0.2 {of}", 0.2, ratios(wall["ours"], wall["naive"])),
        Row(
            "unbundle, 200 MB, 100 embeddings: CPU time", f"<= 0.12 {of}", 0.12, ratios(cpu["back"], cpu["naive back"])
        ),
        Row(
            "unbundle, 200 MB, 100 embeddings: wall time", f"<= 0.2 {of}", 0.2, ratios(wall["back"], wall["naive back"])
        ),
        Row("bundle, 200 MB, 100 embeddings: wall time", "<= 1.6 of cp", 1.6, ratios(wall["ours"], wall["cp"])),
        Row(
            "unbundle, 200 MB, 100 embeddings: wall time",
            "<= 2 of cp -r of what it writes",
            2,
            ratios(wall["back"], wall["cp back"]),
        ),
        Row("bundle, 200 MB: peak memory", "<= 64 MiB", 64, peaks, " MiB"),
    ]


def _large(place: Path) -> list[Row]:
    """A LoRA of 2 GB. Each output is deleted before the next one is written."""
    lora, embeddings = make_lora(place / "large.safetensors", 2000), make_embeddings(place / "few", 100)
    made = place / "made.safetensors"
    commands: dict[str, list[object]] = {
        "cp": ["cp", lora, made],
        "ours": [*PIVOTUNE, "bundle", lora, embeddings, "--out", made],
        "naive": [sys.executable, "-c", NAIVE, lora, embeddings, made],
    }
    found: dict[str, list[Child]] = {name: [] for name in commands}
    for _ in range(ROUNDS):
        for name, command in commands.items():
            found[name].append(child([str(part) for part in command]))
            made.unlink()
    peak = _peak("bundle", lora, embeddings, "--out", made)
    lora.unlink()
    made.unlink()
    cpu = {name: [one.cpu for one in children] for name, children in found.items()}
    wall = {name: [one.wall for one in children] for name, children in found.items()}
    of = "of torch's load and save"
    return [
        Row("bundle, 2 GB, 100 embeddings: CPU time", f"<= 0.15 {of}", 0.15, ratios(cpu["ours"], cpu["naive"])),
        Row("the same: CPU time", "<= 1.3 of cp", 1.3, ratios(cpu["ours"], cpu["cp"])),
        Row("the same: wall time", "<= 1.3 of cp", 1.3, ratios(wall["ours"], wall["cp"])),
        Row("the same: peak memory", "<= 64 MiB", 64, [peak], " MiB"),
    ]


def _peak(*command: object) -> float:
    """MiB."""
    return int(child([sys.executable, "-c", PEAK, *map(str, command)]).output.split()[-1]) / 1024


def _many_embeddings(place: Path) -> list[Row]:
    """Nothing is deleted between the rounds: a file system is slow with new files where many have just gone."""
    lora, embeddings = make_lora(place / "small.safetensors", 10), make_embeddings(place / "many", 10_000)
    found: dict[str, list[float]] = {}

    def run(name: str, *command: object) -> None:
        found.setdefault(name, []).append(child([str(part) for part in command]).cpu)

    for number in range(FEWER):
        bundle, naive = place / f"many{number}.safetensors", place / f"naive{number}.safetensors"
        run("bundle", *PIVOTUNE, "bundle", lora, embeddings, "--out", bundle)
        run("naive", sys.executable, "-c", NAIVE, lora, embeddings, naive)
        out, back = place / f"out{number}", place / f"back{number}"
        back.mkdir()
        run("unbundle", *PIVOTUNE, "unbundle", bundle, "--out", out, *FOR_A1111)
        run("cp -r", "cp", "-r", out, place / f"copy{number}")
        run("naive back", sys.executable, "-c", NAIVE_BACK, bundle, back, back / "lora.safetensors")
    bundled, apart = place / "many0.safetensors", place / "apart"
    peaks = (
        _peak("bundle", lora, embeddings, "--out", place / "peak.safetensors"),
        _peak("unbundle", bundled, "--out", apart, *FOR_A1111),
    )
    of = "of torch's load and save"
    return [
        Row("bundle, 10,000 embeddings: CPU time", f"<= 0.35 {of}", 0.35, ratios(found["bundle"], found["naive"])),
        Row(
            "unbundle, 10,000 embeddings: CPU time", f"<= 0.7 {of}", 0.7, ratios(found["unbundle"], found["naive back"])
        ),
        Row(
            "unbundle, 10,000 embeddings: CPU time",
            "<= 2 of cp -r of what it writes",
            2,
            ratios(found["unbundle"], found["cp -r"]),
        ),
        Row("bundle, 10,000 embeddings: peak memory", "<= 64 MiB", 64, [peaks[0]], " MiB"),
        Row("unbundle, 10,000 embeddings: peak memory", "<= 64 MiB", 64, [peaks[1]], " MiB"),
    ]


def _small(place: Path) -> list[Row]:
    lora, embeddings = make_lora(place / "tiny.safetensors", 1), make_embeddings(place / "one", 1)
    commands = {
        "nothing": [sys.executable, "-c", "pass"],
        "inspect": [*PIVOTUNE, "inspect", str(embeddings / "embedding0.safetensors")],
        "bundle": [
            *PIVOTUNE,
            "bundle",
            str(lora),
            str(embeddings),
            "--out",
            str(place / "t.safetensors"),
            "--overwrite",
        ],
    }
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    for command in commands.values():
        child(command)
    for _ in range(2 * ROUNDS):
        for name, command in commands.items():
            seconds[name].append(child(command).cpu)
    return [
        Row("inspect: CPU time", "<= 7 x python -c pass", 7, ratios(seconds["inspect"], seconds["nothing"])),
        Row("bundle of 1 MB: CPU time", "<= 9 x python -c pass", 9, ratios(seconds["bundle"], seconds["nothing"])),
    ]


def _header(place: Path) -> list[Row]:
    path = place / "keys.safetensors"
    one = RawTensor("F16", (1, 2), b"\0\0\0\0")
    safetensors_file.write(path, {f"lora_unet_block_{number}.lora_down.weight": one for number in range(100_000)}, {})
    ours = KEYS.format(module="pivotune.converters.safetensors_file", name="read", call="read(sys.argv[1])")
    theirs = KEYS.format(module="safetensors", name="safe_open", call="safe_open(sys.argv[1], 'numpy').keys()")
    values = []
    for _ in range(ROUNDS):
        a, b = (int(child([sys.executable, "-c", code, str(path)]).output) for code in (ours, theirs))
        values.append(a / b)
    return [Row("header of 100,000 tensors, checked: CPU time", "<= 2 x safe_open().keys()", 2, values)]


def make_lora(path: Path, megabytes: int) -> Path:
    rank = max(1, megabytes * 2**20 // MODULES // 2 // 2 // 2048)
    data = bytes(range(256)) * (rank * 16)
    tensors = {}
    for number in range(MODULES):
        name = f"lora_unet_input_blocks_{number}_attn2_to_k"
        tensors[f"{name}.lora_down.weight"] = RawTensor("F16", (rank, 2048), data)
        tensors[f"{name}.lora_up.weight"] = RawTensor("F16", (2048, rank), data)
        tensors[f"{name}.alpha"] = RawTensor("F16", (), b"\0\x3c")
    safetensors_file.write(path, tensors, {"ss_base_model_version": "sdxl_base_v1-0"})
    return path


def make_embeddings(folder: Path, count: int) -> Path:
    vectors = {key: RawTensor("F32", (4, size), struct.pack("<f", 0.02) * 4 * size) for key, size in
               {"clip_l": 768, "clip_g": 1280}.items()}  # fmt: skip
    folder.mkdir()
    safetensors_file.write(folder / "embedding0.safetensors", vectors, {})
    for number in range(1, count):
        shutil.copyfile(folder / "embedding0.safetensors", folder / f"embedding{number}.safetensors")
    return folder
