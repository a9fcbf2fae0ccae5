"""Commands on consoles without Unicode, without a console, and with output to a closed pipe."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
from safetensors.numpy import save_file

from pivotune.pipeline import console
from pivotune.pipeline.cli.options import print_json
from pivotune.pipeline.files import write_json

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
        source, target = recipes / "images" / "emblem" / f"emblem-{number}.png", folder / f"images {NAME}"
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


@pytest.mark.parametrize("name", ["cp437", "C"])
def test_commands_on_consoles_without_unicode(folder, name: str) -> None:
    file, recipe = f"{NAME}.safetensors", f"{NAME}.toml"
    commands = {
        ("inspect", file): (0, f"embedding {NAME}"),
        ("check", recipe): (0, f"<{NAME}> in 100 %"),
        ("check", recipe, "--set", f"model.{NAME}=1"): (1, f"unknown key '{NAME}'"),
        ("check", f"{NAME}.nothing"): (1, "no such file"),
        ("rename", file, f"{NAME}2", "--out", f"renamed-{name}.safetensors"): (0, "emb_params (diffusers)"),
        ("merge", file, "other.safetensors", "--out", f"{NAME}-{name}.safetensors"): (0, f"{NAME}-{name}"),
        ("split", f"{NAME}-{name}.safetensors", "--family", "sd1", "--out", f"split-{name}"): (0, "other"),
        ("bundle", "lora.safetensors", file, "--out", f"{NAME}-b-{name}.safetensors"): (0, f"{NAME}-b-{name}"),
        ("unbundle", f"{NAME}-b-{name}.safetensors", "--out", f"{NAME}-u-{name}"): (0, f"{NAME}-u-{name}"),
        ("retarget", file, "--for", "comfyui", "--out", f"{NAME}-r-{name}"): (0, "embedding:é猫"),
        ("new", "quickstart", "--out", f"new-{name}.toml"): (0, "written"),
        ("--help",): (0, "Usage"),
        (NAME,): (2, f"No such command '{NAME}'"),
    }
    encoding = {"C": "utf-8"}.get(name, name)
    for arguments, (code, text) in commands.items():
        done = pivotune(name, folder, *arguments)
        output = (done.stdout + done.stderr).decode(encoding)
        assert "Traceback" not in output, (arguments, output)
        shown = text.encode(encoding, "backslashreplace").decode(encoding)
        assert (done.returncode, shown in output) == (code, True), (arguments, output)


def test_json_is_json_on_any_console(folder) -> None:
    for name in ("cp1252", "ascii", "C"):
        shown = json.loads(pivotune(name, folder, "inspect", "--json", f"{NAME}.safetensors").stdout)
        assert shown["path"] == f"{NAME}.safetensors"


def test_json_of_long_answers_is_escaped_where_needed(monkeypatch) -> None:
    for encoding in ("cp1252", "utf-8"):
        stream = io.TextIOWrapper(io.BytesIO(), encoding)
        monkeypatch.setattr(sys, "stdout", stream)
        print_json({"embedding": f"{NAME} →"})
        stream.flush()
        assert json.loads(stream.buffer.getvalue().decode(encoding)) == {"embedding": f"{NAME} →"}


def test_a_run_and_its_report_on_code_page_1252(folder) -> None:
    done = pivotune("cp1252", folder, "run", f"{NAME}.toml", "--out", f"run {NAME}")
    assert done.returncode == 0, done.stderr
    shown = NAME.encode("cp1252", "backslashreplace")
    assert b"<" + shown + b">" in done.stdout
    assert b"-> 0." in done.stdout  # the norm, before and after
    assert f"<{NAME}>" in (folder / f"run {NAME}" / "manifest.json").read_text("utf-8")
    page = (folder / f"run {NAME}" / "report.html").read_text("utf-8")
    assert NAME in page
    assert '<meta charset="utf-8">' in page
    plan = pivotune("cp1252", folder, "plan", f"{NAME}.toml")
    assert (plan.returncode, b"->" in plan.stdout) == (0, True)


def test_paths_that_are_not_unicode_are_kept_in_json(tmp_path) -> None:
    odd = b"odd\xff".decode(errors="surrogateescape")
    write_json(tmp_path / "manifest.json", {"recipe_file": f"{odd}{NAME}"})
    assert json.loads((tmp_path / "manifest.json").read_text("utf-8")) == {"recipe_file": f"{odd}{NAME}"}
    done = pivotune("", tmp_path, "tokens", odd)
    assert (done.returncode, b"not valid UTF-8" in done.stderr) == (2, True)


@pytest.mark.skipif(os.name == "nt", reason="descriptors of pipes")
def test_a_closed_pipe_does_not_end_a_command(folder) -> None:
    read, write = os.pipe()
    os.close(read)
    done = pivotune("", folder, "schema", "train", capture_output=False, stdout=write, stderr=subprocess.PIPE)
    assert (done.returncode, done.stderr) == (0, b"")
    code = pivotune("", folder, "check", "nothing.toml", capture_output=False, stdout=write, stderr=write).returncode
    assert code == 1
    os.close(write)


def test_a_process_without_streams(folder) -> None:
    """As under pythonw."""
    code = (
        "import sys\nsys.stdin = sys.stdout = sys.stderr = None\nfrom pivotune.pipeline.cli.entry import main\nmain()"
    )
    for arguments, ends in ((["check", f"{NAME}.toml"], 0), (["check", "nothing.toml"], 1), (["inspect"], 2)):
        done = subprocess.run([sys.executable, "-c", code, *arguments], cwd=folder, check=False, capture_output=True)
        assert (done.returncode, done.stdout, done.stderr) == (ends, b"", b"")


def test_ctrl_break_is_ctrl_c(monkeypatch) -> None:
    for name in ("stdin", "stdout", "stderr"):
        monkeypatch.setattr(sys, name, object())
    monkeypatch.setattr(signal, "SIGBREAK", signal.SIGTERM, raising=False)  # a signal of Windows
    before = signal.getsignal(signal.SIGTERM)
    try:
        console.prepare_console()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)
