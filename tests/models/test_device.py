"""The device of a run, and its deterministic settings."""

import os

import pytest
import torch

from pivotune.pipeline.device import device_name, make_deterministic, peak_memory, pick_device
from pivotune.pipeline.errors import StageError


def have(monkeypatch, cuda=0, mps=False, xpu=0):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    monkeypatch.setattr(torch.xpu, "is_available", lambda: xpu > 0)
    monkeypatch.setattr(torch.xpu, "device_count", lambda: xpu)


@pytest.mark.parametrize(
    ("machine", "expected"),
    [({}, "cpu"), ({"xpu": 1}, "xpu"), ({"mps": True}, "mps"), ({"cuda": 2, "mps": True, "xpu": 1}, "cuda")],
)
def test_auto_chooses_the_best_device(monkeypatch, machine, expected):
    have(monkeypatch, **machine)
    assert pick_device("auto").type == expected


@pytest.mark.parametrize("wanted", ["cuda", "cuda:0", "mps", "xpu"])
def test_a_device_that_is_not_there_is_refused_with_those_that_are(monkeypatch, wanted):
    have(monkeypatch)
    with pytest.raises(StageError, match=rf"device = '{wanted}': this torch \(.*\) supports only cpu; use one"):
        pick_device(wanted)


def test_the_numbers_of_devices_are_checked(monkeypatch):
    have(monkeypatch, cuda=2, xpu=1)
    assert pick_device("cuda:1") == torch.device("cuda", 1)
    with pytest.raises(StageError, match=r"device = 'cuda:2': this machine has 2 cuda devices"):
        pick_device("cuda:2")
    with pytest.raises(StageError, match=r"device = 'xpu:1': this machine has 1 xpu device,"):
        pick_device("xpu:1")


def test_a_cpu_has_a_name_and_no_memory_of_its_own():
    assert device_name(torch.device("cpu")) == "CPU"
    assert peak_memory(torch.device("cpu")) is None


def test_a_run_is_made_repeatable(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    threads = torch.get_num_threads()
    try:
        make_deterministic(5, 1)
        first = torch.rand(3)
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.get_num_threads() == 1
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
        make_deterministic(5, None)
        assert torch.equal(torch.rand(3), first)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(False)
