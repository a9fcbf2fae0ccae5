"""Every command on consoles of few letters, on none, and on one that is closed early."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.numpy import save_file

from pivotune.pipeline import console

numpy = pytest.importorskip("numpy")
NAME = "é猫🐱"
CONSOLES = {
    "cp1252": {"PYTHONIOENCODING": "cp1252"},
    "cp437": {"PYTHONIOENCODING": "cp437"},
    "ascii": {"PYTHONIOENCODING": "ascii"},
    "C": {"LC_ALL": "C", "LANG": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
}


def pivotune(console: str, folder: Path, *arguments: str, **options) -> subprocess.CompletedProcess[bytes]:
    """The command on that console, in the folder."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONUTF8", "LC_ALL")}
    return subprocess.run(
        [sys.executable, "-m", "pivotune", *arguments], cwd=folder, env=environment | CONSOLES.get(console, {}),
        check=False, **{"capture_output": True, "stdin": subprocess.DEVNULL} | options,
    )  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder, a recipe, images and embeddings whose names no code page has."""
    folder = tmp_path_factory.mktemp("all") / NAME
    (folder / f"images {NAME}").mkdir(parents=True)
    recipes = Path(__file__).parents[2] / "recipes"
    for number in range(2):
        source, target = recipes / "pictures" / "emblem" / f"emblem-{number}.png", folder / f"images {NAME}"
        (target / f"{NAME}{number}.png").write_bytes(source.read_bytes())
        (target / f"{NAME}{number}.txt").write_text(f"a photo of <{NAME}> → it", "utf-8")
    (folder / f"{NAME}.toml").write_text(
        f"name = 'plain'\nmodel.base = 'micro'\nseed = 1\n"
        f"[[concept]]\nimages = 'images {NAME}'\n"
        f'[[embedding]]\nplaceholder = "<{NAME}>"\ninitial_text = "ring"\n'
        '[[stage]]\nkind = "tokenize"\n[[stage]]\nkind = "inject"\n'
        '[[stage]]\nkind = "train"\nsteps = 1\nbatch_size = 1\n[[stage]]\nkind = "export"\ntargets = ["a1111"]\n'
        "[samples]\ncount = 1\nsteps = 1\n",
        "utf-8",
    )
    rows = numpy.full((1, 768), 0.5, numpy.float32)
    save_file({"emb_params": rows}, folder / f"{NAME}.safetensors", {"name": NAME})
    save_file({"emb_params": rows}, folder / "other.safetensors")
    save_file({"lora_unet_x_attn2_to_k.lora_down.weight": rows}, folder / "lora.safetensors")
    return folder


def test_commands_on_consoles_without_our_letters(folder, tmp_path) -> None:
    file, recipe = f"{NAME}.safetensors", f"{NAME}.toml"
    commands = {
        ("inspect", file): NAME,
        ("inspect", "--json", file): "",
        ("check", recipe): NAME,
        ("check", "nothing.toml"): "no such file",
        ("check", recipe, "--set", f"model.{NAME}=1"): "unknown",
        ("plan", recipe): "->",
        ("plan", recipe, "--json"): "",
        ("tokens", f"a {NAME} → b", "--model", "micro"): "tokens",
        ("schema", "train"): "",
        ("--help",): "Usage",
        (NAME,): "No such command",
    }
    for name in ("cp437", "C"):
        for arguments, words in commands.items():
            if name == "C" and arguments[0] in ("plan", "tokens"):
                continue  # they import torch: once is enough
            done = pivotune(name, folder, *arguments)
            said = done.stdout + done.stderr
            assert b"Traceback" not in said, (arguments, said.decode("cp437"))
            assert not words or words.encode("cp437", "backslashreplace") in said or name == "C", (arguments, said)
