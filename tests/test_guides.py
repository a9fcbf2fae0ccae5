"""Every command of the guides runs, on tiny models and noise images; every link leads somewhere."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from projects import BUILD

from pivotune.converters import safetensors_file
from pivotune.converters.tensor import RawTensor
from pivotune.pipeline.cli.main import pivotune
from pivotune.pipeline.recipe.document import shipped_folder

ROOT = Path(__file__).resolve().parents[1]
GUIDES = sorted((ROOT / "recipes").glob("*.md"))
PAGES = [ROOT / "README.md", *GUIDES, ROOT / "pipeline" / "README.md", ROOT / "converters" / "README.md"]
QUICK = {"steps": 2, "count": 1}  # of every train stage and of the samples


def commands(page: Path) -> list[str]:
    """The commands of a page's shell blocks, without comments; those of pip are run by the continuous integration."""
    blocks = re.findall(r"```sh\n(.*?)```", page.read_text("utf-8"), re.S)
    lines = [line.partition("  #")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line and not line.startswith("pip ")]


def make_runnable(recipe: Path, models: Path) -> None:
    """Edit a recipe as its reader would: a model that is here, image folders with captions; and only a few steps."""
    text = recipe.read_text("utf-8")
    family = re.search(r'^family = "([\w.-]+)"', text, re.M)
    if family:
        text = re.sub(r'^base = "[^"]+"', f'base = "{models / family[1]}"', text, flags=re.M)
        text = re.sub(r"^(dtype|variant|config) = [^\n]+\n", "", text, flags=re.M)
    text = re.sub(r"^steps = \d+", f"steps = {QUICK['steps']}", text, flags=re.M)
    text = re.sub(r"^count = \d+", f"count = {QUICK['count']}", text, flags=re.M)
    text = text.replace("count = 100", "count = 3")
    if family and family[1] == "z-image":  # its configuration does not say the size of its images
        text = text.replace("batch_size = 1", "batch_size = 1\nresolution = 32").replace(
            "[samples]", "[samples]\nsize = 32"
        )
    placeholders = re.findall(r'^placeholder = "([^"]+)"', text, re.M)
    for number, folder in enumerate(re.findall(r'^images = "([^"]+)"', text, re.M)):
        prior = "prior = true" in text.split(f'images = "{folder}"')[1].split("[[")[0]
        caption = "a drawing" if prior else f"a photo of {placeholders[min(number, len(placeholders) - 1)]}"
        add_images(recipe.parent / folder, caption)
    recipe.write_text(text, "utf-8")


def add_images(folder: Path, caption: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    draw = numpy.random.default_rng(0)
    for number in range(3):
        values = draw.integers(0, 255, (72, 72, 3), dtype=numpy.uint8)
        Image.fromarray(values).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(caption, "utf-8")


def add_files(folder: Path) -> None:
    """The files that the guide about converting starts from: embeddings of several dialects, a bundle, and a
    ComfyUI."""
    torch.save({"string_to_param": {"*": torch.ones(2, 768)}, "name": "old"}, folder / "embedding.pt")
    values = {key: torch.randn(2, width) for key, width in (("clip_l", 768), ("clip_g", 1280))}
    raw = {key: RawTensor("F32", tuple(one.shape), one.numpy().tobytes()) for key, one in values.items()}
    for number, key in enumerate(("clip_l", "clip_g"), 1):
        safetensors_file.write(folder / f"embedding_te{number}.safetensors", {key: raw[key]}, {})
    name = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
    lora = {
        f"{name}.lora_down.weight": RawTensor("F32", (2, 768), bytes(2 * 768 * 4)),
        f"{name}.lora_up.weight": RawTensor("F32", (320, 2), bytes(320 * 2 * 4)),
        f"{name}.alpha": RawTensor("F32", (), bytes(4)),
        "bundle_emb.cat.clip_l": raw["clip_l"],
    }
    safetensors_file.write(folder / "lora.safetensors", lora, {})
    (folder / "ComfyUI" / "custom_nodes").mkdir(parents=True)
    (folder / "downloads").mkdir()
    (folder / "downloads" / "old.pt").write_bytes((folder / "embedding.pt").read_bytes())


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for family in ("sd1", "sdxl", "z-image"):
        BUILD[family]().save_pretrained(folder / family)
    return folder


def run(line: str, models: Path) -> None:
    """One command of a guide in the current folder: what it asks for, in little time."""
    program, *arguments = shlex.split(line)
    if program == "accelerate":
        arguments = ["--cpu" if one == "--multi_gpu" else "2" if one == "4" else one for one in arguments]
        quick = ["--set", "train.steps=2", "--set", "samples.count=1", "--set", "samples.steps=1"]
        launcher = [sys.executable, "-m", "accelerate.commands.accelerate_cli", *arguments, *quick]
        done = subprocess.run(launcher, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        return
    assert program == "pivotune", line
    if arguments[0] == "run":
        longer = "--from-checkpoint" in arguments
        arguments = [one for one in arguments if not one.startswith("train.steps=") and (one != "--set" or not longer)]
        shipped = not arguments[1].endswith(".toml")
        arguments += ["--set", "samples.steps=1", "--set", "samples.count=1", "--set", "threads=1"]
        arguments += ["--set", f"train.steps={4 if longer else 2}"] if shipped and arguments[1] != "pivotal" else []
        if arguments[1] == "pivotal":
            arguments += ["--set", "train.1.steps=2", "--set", "train.2.steps=2"]
    done = CliRunner().invoke(pivotune, arguments)
    assert done.exit_code == 0, f"{line}\n{done.output}\n{done.exception!r}"
    if arguments[0] == "new":
        make_runnable(Path(arguments[arguments.index("--out") + 1]), models)


@pytest.mark.parametrize("page", GUIDES, ids=lambda page: page.stem)
def test_every_command_of_a_guide_runs(page: Path, models: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    add_files(tmp_path)
    lines = commands(page)
    assert lines or page.stem == "troubleshooting"
    for line in lines:
        run(line, models)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.parent.name + "/" + page.stem)
def test_links_lead_to_files(page: Path) -> None:
    links = re.findall(r"\]\(([^)#:]+)(?:#[\w-]+)?\)", page.read_text("utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_every_shipped_recipe_is_in_a_guide_or_its_kin() -> None:
    text = "".join(page.read_text("utf-8") for page in [ROOT / "README.md", *GUIDES])
    missing = [path.stem for path in shipped_folder().glob("*.toml") if path.stem not in text]
    assert missing == []


def test_the_messages_in_the_troubleshooting_guide_exist() -> None:
    table = (ROOT / "recipes" / "troubleshooting.md").read_text("utf-8").split("## Warnings and errors")[1]
    quoted = re.findall(r'^\| "([^"]+)" \|', table, re.M)
    code = " ".join(path.read_text("utf-8") for path in (ROOT / "pipeline").rglob("*.py"))
    code_text = re.sub(r'"\s*\n\s*f?"', "", code)  # strings that continue on the next line
    assert len(quoted) >= 10
    assert [phrase for phrase in quoted if phrase not in code_text] == []
