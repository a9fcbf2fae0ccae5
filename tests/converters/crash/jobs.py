"""What is interrupted in these tests: one file and several, new ones and others in the place of old ones."""

import os
from functools import partial
from pathlib import Path

from pivotune.converters import safetensors_file
from pivotune.converters.atomic import batch
from pivotune.converters.embeddings import ConvertOptions
from pivotune.converters.folders import files_in
from pivotune.converters.operations import unbundle


def write(folder, lora, overwrite):
    """One file."""
    safetensors_file.write(folder / "x.safetensors", *lora, overwrite=overwrite)


def take_out(folder, source, overwrite):
    """Two files: a LoRA without its embedding, and the embedding; in a folder that is made on the way."""
    with batch(overwrite=overwrite, repeatable=True) as files:
        unbundle(files, source, folder / "new", [], ConvertOptions())


def every(lora, source):
    """What -> (work, whether old files are there before)."""
    return {
        "a new file": (partial(write, lora=lora, overwrite=False), False),
        "a file over an old one": (partial(write, lora=lora, overwrite=True), True),
        "new files": (partial(take_out, source=source, overwrite=False), False),
        "files over old ones": (partial(take_out, source=source, overwrite=True), True),
    }


NAMES = ("a new file", "a file over an old one", "new files", "files over old ones")


def contents(folder):
    """Path below the folder -> bytes, of everything that is a file."""
    return {
        Path(root, name).relative_to(folder).as_posix(): Path(root, name).read_bytes()
        for root, _, names in os.walk(folder)
        for name in names
    }


def without_litter(found):
    """Those that a program or a person would see as output."""
    return {name: data for name, data in found.items() if not name.rpartition("/")[2].startswith(".")}


def seen(folder):
    """What our own commands take for files with embeddings in them."""
    return [path.relative_to(folder).as_posix() for path in files_in([folder])]
