"""`pivotune doctor`."""

import json
import shutil
import tomllib
from pathlib import Path

import pytest
import torch

from pivotune.pipeline.cli.doctor import NEEDED_BY, why_no_gpu

PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text("utf-8"))["project"]


def test_it_shows_versions_device_and_packages(call, monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("PIVOTUNE_CACHE", str(tmp_path / "not" / "there"))
    shown = call("doctor")
    assert shown.code == 0
    assert all(name in shown.out for name in (*NEEDED_BY, "torch", f"cache: {tmp_path / 'not' / 'there'}"))
    facts = json.loads(call("doctor", "--json").out)
    assert facts["device"] in shown.out.splitlines()[0]
    assert facts["cache_free_gib"] == pytest.approx(shutil.disk_usage(tmp_path).free / 2**30, abs=5)
    assert bool(facts["why_no_gpu"]) == (facts["device"] == "cpu")


def test_every_optional_package_is_in_the_extra_that_is_named() -> None:
    extras = PROJECT["optional-dependencies"]
    for name, (_, extra) in NEEDED_BY.items():
        assert any(one.startswith(name) for one in extras[extra])
    others = extras.keys() - {extra for _, extra in NEEDED_BY.values()}
    assert others == {"cascade", "dev"}  # torchvision, as for Anima; tests


@pytest.mark.parametrize(
    ("cuda", "hidden", "driver", "message"),
    [
        (None, None, False, "is built for the CPU"),
        (None, None, True, "a driver of NVIDIA is installed"),
        ("12.8", "", True, "CUDA_VISIBLE_DEVICES='' hides all"),
        ("12.8", None, False, "nvidia-smi is not found"),
        ("12.8", None, True, "compare its version"),
    ],
)
def test_why_no_gpu_is_used(monkeypatch, cuda, hidden, driver, message) -> None:
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/nvidia-smi" if driver else None)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if hidden is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    assert message in why_no_gpu()
    assert "\n" not in why_no_gpu()
