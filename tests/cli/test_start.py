"""Starting: quick, lazy, and clear about wrong use."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from pivotune import __version__
from pivotune.pipeline.cli.main import COMMANDS

HEAVY = {
    "torch",
    "numpy",
    "transformers",
    "diffusers",
    "peft",
    "accelerate",
    "PIL",
    "safetensors",
    "matplotlib",
    "jinja2",
}


def imported(*arguments: str) -> set[str]:
    """Top-level names of all modules that a call imports."""
    code = (
        "import sys\nfrom pivotune.pipeline.cli.main import main\n"
        "try: main()\nexcept SystemExit: pass\n"
        "print('MODULES', *{name.split('.')[0] for name in sys.modules})"
    )
    shown = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True).stdout
    return set(shown.rsplit("MODULES", 1)[1].split())


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["run", "--help"], ["check", "--help"], ["new"]])
def test_help_loads_next_to_nothing(arguments: list[str]) -> None:
    assert not imported(*arguments) & (HEAVY | {"jsonschema", "referencing", "huggingface_hub"})


def test_check_loads_no_heavy_library(recipe: Path) -> None:
    heavy = HEAVY - {"PIL"}  # Pillow says how large images are, in a twentieth of a second
    assert not imported("check", str(recipe)) & (heavy | {"huggingface_hub"})


@pytest.mark.slow
def test_a_run_imports_what_it_needs_and_the_report_after_training(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom pivotune.pipeline.run import runner\nbegin = set(sys.modules)\n"
        "from pivotune.pipeline.cli.main import main\n"
        "try: main()\nexcept SystemExit: pass\n"
        "own = [name for name, module in sys.modules.items() if name.startswith('pivotune.pipeline.')]\n"
        "print('MODULES', sum(not hasattr(sys.modules[name], '__path__') for name in own), 'matplotlib' in begin)"
    )
    arguments = [
        "run",
        "quickstart",
        "--set",
        "train.steps=1",
        "--set",
        "samples.count=1",
        "--out",
        str(tmp_path / "r"),
    ]
    shown = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True).stdout
    count, early = shown.rsplit("MODULES", 1)[1].split()
    assert int(count) <= 140
    assert early == "False"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(call, name: str) -> None:
    shown = call(name, "--help")
    assert shown.code == 0
    assert "Usage: pivotune" in shown.out
    assert len(shown.out.splitlines()) > 6


@pytest.mark.parametrize("arguments", [["--version"], ["schema", "train"]])
def test_a_process_that_ends_at_once_has_written_all_or_says_that_it_could_not(arguments: list[str]) -> None:
    command = [sys.executable, "-m", "pivotune", *arguments]
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    done = subprocess.run(command, capture_output=True, check=True, env=buffered)
    assert len(done.stdout) > 10
    assert not done.stderr
    if Path("/dev/full").exists():
        with open("/dev/full", "wb") as full:
            lost = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, check=False, env=buffered)
        assert lost.returncode
        assert b"No space left" in lost.stderr


def test_the_help_lists_every_command(call) -> None:
    shown = call("--help").out
    for name, (_, _, text) in COMMANDS.items():
        assert f"  {name}" in shown
        assert text in shown


def test_the_version(call) -> None:
    assert call("--version").out == f"pivotune {__version__}\n"


def test_the_versions_for_a_bug_report(call) -> None:
    lines = call("--version", "-v").out.splitlines()
    assert lines[0] == f"pivotune {__version__}"
    found = dict(line.split(maxsplit=1) for line in lines[1:])
    assert found["torch"] == version("torch")
    assert {"python", "platform", "transformers", "peft", "filelock"} <= found.keys()


@pytest.mark.parametrize(
    ("arguments", "embeddings"),
    [
        (["chek"], "No such command 'chek'. Did you mean 'check'?"),
        (["zzz"], "No such command 'zzz'"),
        (["check"], "Missing argument 'RECIPE...'"),
        (["run"], "Missing argument 'RECIPE'"),
        (["check", "x", "--jsn"], "--json"),
        (["new", "quikstart"], "did you mean 'quickstart'?"),
        (["schema", "trian"], "did you mean 'train'?"),
    ],
)
def test_wrong_use_exits_with_2(call, arguments: list[str], embeddings: str) -> None:
    shown = call(*arguments)
    assert shown.code == 2
    assert embeddings in shown.err
    assert shown.out == ""


def test_the_module_is_the_command() -> None:
    shown = subprocess.run([sys.executable, "-m", "pivotune", "--version"], capture_output=True, text=True, check=True)
    assert shown.stdout == f"pivotune {__version__}\n"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_can_complete(shell: str) -> None:
    environment = {"_PIVOTUNE_COMPLETE": f"{shell}_source", "PATH": "/usr/bin:/bin"}
    command = [sys.executable, "-m", "pivotune"]
    shown = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert "_PIVOTUNE_COMPLETE" in shown.stdout


@pytest.mark.parametrize(
    ("embeddings", "offered"),
    [
        ("pivotune ch", "plain,check"),
        ("pivotune run qui", "plain,quickstart file,qui"),
        ("pivotune run --dev", "plain,--device"),
    ],
)
def test_a_shell_completes_commands_and_recipes(embeddings: str, offered: str) -> None:
    last = str(len(embeddings.split()) - 1)
    environment = {"_PIVOTUNE_COMPLETE": "bash_complete", "COMP_WORDS": embeddings, "COMP_CWORD": last}
    shown = subprocess.run(
        [sys.executable, "-m", "pivotune"], env=environment, capture_output=True, text=True, check=False
    )
    assert shown.stdout.split() == offered.split()
