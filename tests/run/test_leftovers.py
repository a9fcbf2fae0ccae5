"""What a killed process leaves half written is deleted when its run resumes, and nothing else does."""

from __future__ import annotations

import itertools
import os
import resource
import signal
from pathlib import Path

import pytest
import safetensors.torch
from projects import make_project, run_project
from run.killing import child

from pivotune.pipeline.report import page
from pivotune.pipeline.run.start import remove_leftovers

OURS = (
    ".probe", ".manifest.json.part", ".finished.old/embedding.bin", ".last-good.part/embedding.bin",
    "checkpoints/.tmpoEhWcw",
    "checkpoints/.stage-003-step-000000002.safetensors.part", "saves/.stage-3-step-000002.part/exports/a.safetensors",
    "saves/.stage-3-step-000001.old/save.json", "exports/tiny/.0123456789abcdef.part", "latents/.0123456789abcdef.part",
)  # fmt: skip
THEIRS = (
    ".tmpoEhWcw", ".report.html.old", ".report.html", ".notes.part", "checkpoints/.tmp", "checkpoints/.tmpoEhWcwX",
    "checkpoints/.notes.part", "saves/.git/config", "exports/.notes.part", "exports/.0123456789abcdef.part.txt",
    "mine/.0123456789abcdef.part", "images/.tmpoEhWcw", "last-good/cat.safetensors",
)  # fmt: skip


@pytest.mark.skipif(not hasattr(signal, "SIGXFSZ"), reason="this system kills no process for a file's size")
def test_a_kill_while_a_checkpoint_is_written_leaves_nothing_after_a_resume(tmp_path, monkeypatch):
    """The kernel kills the writer at 4 KB of its file, as surely as SIGKILL and at the very moment."""
    recipe, run = make_project(tmp_path, more='[checkpoint]\nevery = "1 steps"'), tmp_path / "run"
    count, save = itertools.count(1), safetensors.torch.save_file

    def killed(tensors, path, metadata):
        if next(count) == 2:
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
            resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
            tensors = tensors | {"large": safetensors.torch.torch.zeros(10_000)}
        save(tensors, path, metadata)

    with monkeypatch.context() as patch:
        patch.setattr(safetensors.torch, "save_file", killed)
        assert child(lambda: run_project(recipe, run)) == -signal.SIGXFSZ
    left = {path.name for path in (run / "checkpoints").glob(".*")}
    assert left, "nothing was left: the kill came too late"
    run_project(recipe, run)
    assert {path.name for path in run.rglob(".*")} == {".lock"}


def test_only_files_that_a_run_writes_are_deleted(tmp_path):
    dead = os.waitpid(os.posix_spawn("/bin/true", ["true"], {}), 0)[0] if hasattr(os, "posix_spawn") else 2**30
    gone = [*OURS, f".report.html.{dead}", f".report.html.{os.getpid()}"]
    stay = [*THEIRS, f".report.html.{os.getppid()}"]
    for name in (*gone, *stay):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    remove_leftovers(tmp_path)
    assert {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()} == set(stay)


def test_the_last_good_embeddings_survive_a_kill_between_old_and_new(tmp_path):
    for name in ("old", "part"):
        (tmp_path / f".last-good.{name}").mkdir()
        (tmp_path / f".last-good.{name}/cat").write_text(name)
    remove_leftovers(tmp_path)
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")] == ["last-good", "last-good/cat"]
    assert (tmp_path / "last-good/cat").read_text() == "old"


def test_a_report_on_a_full_disk_leaves_no_partial_file(tmp_path, monkeypatch):
    monkeypatch.setattr(page, "read_manifest", lambda folder: {"environment": {}})

    def full(path: Path, text: str, **options: object) -> None:
        path.write_bytes(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space left"):
        page.write_report(tmp_path)
    assert list(tmp_path.iterdir()) == []
