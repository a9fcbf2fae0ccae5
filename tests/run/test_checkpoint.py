"""Checkpoint files: whole or not there, the newest whole one is found, damage is seen."""

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from pivotune.pipeline.errors import StageError
from pivotune.pipeline.run import checkpoints as module
from pivotune.pipeline.run.checkpoints import Checkpoint, newest_checkpoint, read_checkpoint, write_checkpoint

RUN = {
    "metrics": {"bytes": 0, "sha256": "0"}, "stopped_at": {}, "reached": [], "warnings": [],
    "rows": [], "loaded": [],
}  # fmt: skip
SCALE = {"value": 1.0, "dynamic": False, "good": 0, "overflows": 0}
FACTS = {"run": RUN, "trainables": {}, "spans": {}, "scale": SCALE}


def at(step: int, stage: int = 2) -> Checkpoint:
    tensors = {"rows": torch.arange(6.0).reshape(2, 3) + step, "half": torch.ones(3, dtype=torch.bfloat16)}
    return Checkpoint(stage, step, 1.5 * step, tensors, {**FACTS, "step": step})


def test_a_checkpoint_is_read_as_written(tmp_path: Path) -> None:
    back = read_checkpoint(write_checkpoint(tmp_path, at(7)))
    assert (back.stage, back.step, back.seconds, back.facts) == (2, 7, 10.5, {**FACTS, "step": 7})
    assert back.tensors.keys() == {"rows", "half"}
    assert torch.equal(back.tensors["rows"], at(7).tensors["rows"])
    assert back.tensors["half"].dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tensors_that_are_not_contiguous_are_kept(tmp_path: Path, dtype: torch.dtype) -> None:
    """Prodigy schedule-free looks at every eleventh value of a weight: of a small bias, that is one."""
    values = torch.arange(1.0, 31.0).to(dtype)
    tensors = {"one": values[3:13:11], "some": values[::11], "none": values[:0:11], "alone": values[5]}
    back = read_checkpoint(write_checkpoint(tmp_path, Checkpoint(2, 3, 1.0, tensors, FACTS)))
    assert {name: one.tolist() for name, one in back.tensors.items()} == {
        "one": [4.0], "some": [1.0, 12.0, 23.0], "none": [], "alone": 6.0
    }  # fmt: skip


def test_the_newest_are_kept_and_the_newest_is_found(tmp_path: Path) -> None:
    for step in (3, 20, 100):
        write_checkpoint(tmp_path, at(step), keep=2)
    write_checkpoint(tmp_path, at(1, stage=3), keep=2)
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["stage-003-step-000000100.safetensors", "stage-004-step-000000001.safetensors"]
    found = newest_checkpoint(tmp_path, pytest.fail)
    assert found is not None
    assert (found.stage, found.step) == (3, 1)


def test_copies_made_by_the_user_are_kept(tmp_path: Path) -> None:
    first = write_checkpoint(tmp_path, at(3))
    copies = [first.with_name(f"{first.stem}{more}.safetensors") for more in (" - Copy", "-good", "_good")]
    for copy in copies:
        copy.write_bytes(first.read_bytes())
    for step in (4, 5):
        write_checkpoint(tmp_path, at(step), keep=1)
    assert all(copy.exists() for copy in copies)
    assert not first.exists()
    found = newest_checkpoint(tmp_path, pytest.fail)
    assert found is not None
    assert found.step == 5


@pytest.mark.parametrize("damage", ["bit", "cut", "empty", "other"])
def test_a_damaged_checkpoint_is_skipped_with_a_message(tmp_path: Path, damage: str) -> None:
    write_checkpoint(tmp_path, at(3))
    path = write_checkpoint(tmp_path, at(4))
    data = bytearray(path.read_bytes())
    if damage == "bit":
        data[-2] ^= 4
    path.write_bytes({"bit": data, "cut": data[:-5], "empty": b"", "other": b"no checkpoint at all"}[damage])
    messages: list[str] = []
    found = newest_checkpoint(tmp_path, messages.append)
    assert found is not None
    assert found.step == 3
    assert len(messages) == 1
    assert messages[0].startswith(str(path))
    assert messages[0].endswith("skipped")


@pytest.mark.parametrize("keep", [1, 2])
def test_skipped_checkpoints_do_not_count_as_kept(tmp_path: Path, keep: int) -> None:
    for step in (3, 9, 12):
        write_checkpoint(tmp_path, at(step), keep=3)
    for step in (9, 12):
        (tmp_path / "checkpoints" / at(step).name).write_bytes(b"damaged")
    write_checkpoint(tmp_path, at(5), keep=keep)  # the run resumed from step 3
    found = newest_checkpoint(tmp_path, pytest.fail)
    assert found is not None
    assert found.step == 5
    assert len(list((tmp_path / "checkpoints").iterdir())) == keep


def test_a_checkpoint_of_another_version_is_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(module, "_FORMAT", "1")
        path = write_checkpoint(tmp_path, at(3))
    with pytest.raises(StageError, match=r"the checkpoint is of another version of Pivotune \(layout 1, not 5\)"):
        read_checkpoint(path)
    messages: list[str] = []
    assert newest_checkpoint(tmp_path, messages.append) is None
    assert [line.endswith("skipped") for line in messages] == [True]


def test_other_safetensors_files_are_no_checkpoint(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(2)}, tmp_path / "a.safetensors", {"format": "pt"})
    with pytest.raises(StageError, match="not a checkpoint"):
        read_checkpoint(tmp_path / "a.safetensors")


def test_a_checkpoint_without_the_rows_of_embeddings_is_refused(tmp_path: Path) -> None:
    """A backup that lacks an embedding must not go on from the embedding's beginning."""
    path = write_checkpoint(tmp_path, at(3))
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    save_file({"half": at(3).tensors["half"]}, path, metadata)
    with pytest.raises(StageError, match="damaged"):
        read_checkpoint(path)


def test_a_folder_may_have_no_checkpoint(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path, pytest.fail) is None


def test_a_full_disk_leaves_the_older_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_checkpoint(tmp_path, at(3), keep=1)

    def full(tensors: object, path: Path, metadata: object) -> None:
        Path(path).write_bytes(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(StageError, match="No space left"):
        write_checkpoint(tmp_path, at(4), keep=1)
    monkeypatch.undo()
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["stage-003-step-000000003.safetensors"]
    found = newest_checkpoint(tmp_path, pytest.fail)
    assert found is not None
    assert found.step == 3


def test_older_checkpoints_are_deleted_after_the_new_one_is_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_checkpoint(tmp_path, at(3), keep=1)
    with monkeypatch.context() as patch:
        patch.setattr(module.os, "replace", lambda old, new: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            write_checkpoint(tmp_path, at(4), keep=1)
    found = newest_checkpoint(tmp_path, pytest.fail)
    assert found is not None
    assert found.step == 3
    write_checkpoint(tmp_path, at(5), keep=1)
    assert len(list((tmp_path / "checkpoints").iterdir())) == 1


def test_a_checkpoint_that_is_open_on_windows_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, real = write_checkpoint(tmp_path, at(1)), Path.unlink

    def in_use(path: Path, missing_ok: bool = False) -> None:
        if path == first:
            raise PermissionError(13, "in use by another process")
        real(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", in_use)
    for step in (2, 3):
        write_checkpoint(tmp_path, at(step))
    assert len(list((tmp_path / "checkpoints").iterdir())) == 3
    found = newest_checkpoint(tmp_path, pytest.fail)
    assert found is not None
    assert found.step == 3
