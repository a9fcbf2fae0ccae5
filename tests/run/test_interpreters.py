"""Processes with an interpreter each, as launchers start them: each hashes strings in its own way."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from projects import make_project, run_project
from run.killing import assert_same
from run.kinds import KINDS
from run.launching import launched

PARTS = dict(KINDS["processes, many embeddings"].parts)


@pytest.mark.slow
def test_sharded_embeddings_do_not_depend_on_hash_randomisation(tmp_path):
    """Several embeddings stop at one step: their owners tell the others of them, in an order that all must have."""
    for name, text in KINDS["processes, many embeddings"].files.items():
        (tmp_path / name).write_text(text, "utf-8")
    recipe = make_project(tmp_path, **(PARTS | {"train": f"ema = 0.9\n{PARTS['train']}"}))
    assert launched(tmp_path, lambda rank: run_project(recipe, tmp_path / "alike")).codes == [0, 0]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    running = [_spawned(recipe, tmp_path / "own", rank, port) for rank in range(2)]
    outputs = [process.communicate(timeout=300)[0] for process in running]
    assert [process.returncode for process in running] == [0, 0], outputs
    assert_same(tmp_path / "own", tmp_path / "alike")


def _spawned(recipe: Path, out: Path, rank: int, port: int) -> subprocess.Popen[str]:
    asked = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "RANK": str(rank), "LOCAL_RANK": str(rank)}
    asked |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "PYTHONHASHSEED": str(rank + 1)}
    return subprocess.Popen(
        [sys.executable, "-m", "pivotune", "run", str(recipe), "--out", str(out)],
        env=os.environ | asked, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
