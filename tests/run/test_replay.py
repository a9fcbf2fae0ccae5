"""`pivotune replay RUN` as people type it: no --out, from any folder."""

import pytest
from click.testing import CliRunner
from projects import make_project, run_project

from pivotune.pipeline.commands.replay import replay


@pytest.mark.parametrize("train", ["", "lora = { rank = 2 }"])
def test_replay_without_out_is_the_same_beside_the_run_and_leaves_the_working_folder_alone(
    tmp_path, monkeypatch, train
):
    """Files are named after the run, so the second run must have the first one's name."""
    run_project(make_project(tmp_path, train=train), tmp_path / "kept" / "first")
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    for name in ("first-replay", "first-replay-2") if not train else ("first-replay",):
        told = CliRunner().invoke(replay, ["../kept/first"])
        assert told.exit_code == 0, told.output
        assert told.output.splitlines()[-1].startswith("The same: 3 steps and ")
        assert told.output.splitlines()[-1].endswith(str(tmp_path / "kept" / name))
        assert (tmp_path / "kept" / name / "exports" / "tiny_embeddings" / "cat.safetensors").is_file()
    assert list(here.iterdir()) == []
