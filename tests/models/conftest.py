"""Tiny models on disk, written once per session; each test changes its own copy."""

import shutil
from pathlib import Path

import pytest
from tiny import tiny_sd, tiny_sdxl

from pivotune.pipeline.models.load import quiet_libraries

BUILD = {"sd1": tiny_sd, "sdxl": tiny_sdxl}


@pytest.fixture(scope="session")
def originals(tmp_path_factory):
    """Family to (pipeline, its folder)."""
    quiet_libraries()
    folder = tmp_path_factory.mktemp("models")
    pipes = {family: build() for family, build in BUILD.items()}
    for family, pipe in pipes.items():
        pipe.save_pretrained(folder / family)
    return {family: (pipe, folder / family) for family, pipe in pipes.items()}


@pytest.fixture(params=["sd1", "sdxl"])
def family(request):
    return request.param


@pytest.fixture
def original(originals, family):
    return originals[family][0]


@pytest.fixture
def folder(originals, family, tmp_path) -> Path:
    """A copy of the family's folder, free to be damaged."""
    return Path(shutil.copytree(originals[family][1], tmp_path / "model"))


@pytest.fixture
def sd1_folder(originals, tmp_path) -> Path:
    return Path(shutil.copytree(originals["sd1"][1], tmp_path / "sd1"))


@pytest.fixture
def sdxl_folder(originals, tmp_path) -> Path:
    return Path(shutil.copytree(originals["sdxl"][1], tmp_path / "sdxl"))
