"""The report of a run that is still at work, and the command that keeps it up to date."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from report.example import manifest, metrics, ring, write_run
from report.parsed import Page, page

from pivotune.pipeline.cli.main import pivotune
from pivotune.pipeline.lock import folder_lock, is_locked
from pivotune.pipeline.records import Metrics
from pivotune.pipeline.report.page import follow, write_report


def just_started(folder: Path) -> Path:
    """A run that has just begun: its manifest has no embeddings yet, and nothing has been measured."""
    made = manifest([], status="running", artefacts=[], proofs={})
    made["recipe"]["embedding"] = [{"placeholder": "<emblem>"}]
    write_run(folder, made, [])
    (folder / "metrics.jsonl").unlink()
    return folder


def test_a_run_is_followed_until_it_ends(tmp_path: Path) -> None:
    folder = just_started(tmp_path)
    writer, pages, steps = Metrics(folder), [], iter(metrics(manifest(), 4))

    def work(seconds: float) -> None:
        """What the run does while the follower sleeps: a step, nothing at all, its end."""
        assert seconds == 3
        pages.append((folder / "report.html").read_text("utf-8"))
        if len(pages) == 3:
            (folder / "manifest.json").write_text(json.dumps(manifest()), "utf-8")
            writer.close()
        elif len(pages) == 1:
            writer.write(next(steps))

    messages: list[str] = []
    with folder_lock(folder):
        last = follow(folder, 3, messages.append, work).read_text("utf-8")
    assert 'http-equiv="refresh" content="3"' in pages[0]
    assert "Training <code>&lt;emblem&gt;</code>" in pages[0]
    assert "<svg" not in pages[0]
    assert "<svg" in pages[1]
    assert pages[2] == pages[1]
    assert [line.rpartition(" ")[2] for line in messages] == [
        "progress",
        "progress",
        "complete",
    ]  # nothing new: not written again
    assert "refresh" not in last
    assert "New embedding" in last


def test_ctrl_c_stops_following_and_leaves_a_page_that_does_not_reload(tmp_path: Path) -> None:
    folder = just_started(tmp_path)

    def interrupted(seconds: float) -> None:
        raise KeyboardInterrupt

    Metrics(folder).close()
    with folder_lock(folder):
        html = follow(folder, 5, lambda text: None, interrupted).read_text("utf-8")
    assert "refresh" not in html
    assert "still in progress" in html


AT_WORK = """
import pathlib, sys, time
from pivotune.pipeline.lock import folder_lock
with folder_lock(pathlib.Path(sys.argv[1])):
    print("at work", flush=True)
    time.sleep(60)
"""


def test_a_killed_run_is_distinguished_from_one_in_progress(tmp_path: Path) -> None:
    folder = just_started(tmp_path)
    process = subprocess.Popen([sys.executable, "-c", AT_WORK, str(folder)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "at work\n"
        assert is_locked(folder)
        assert "still in progress" in page(folder).text
    finally:
        process.kill()
        process.communicate()
    assert not is_locked(folder)
    html = follow(folder, 1, lambda text: None, lambda seconds: pytest.fail("it waited for a dead run")).read_text()
    assert "This run was killed" in html
    assert "refresh" not in html


def test_sample_images_during_training_are_shown_in_rows(tmp_path: Path) -> None:
    made = manifest()
    lines = metrics(made, 60)
    folder = write_run(tmp_path, made, lines)
    for line in lines[4::5]:  # twelve moments, two seeds
        line["images"] = [
            {
                "path": f"images/t{line['step']}-{seed}.png",
                "prompt": "a <emblem>",
                "seed": seed,
                "embedding": "<emblem>",
            }
            for seed in (0, 1)
        ]
        for image in line["images"]:
            ring(folder / image["path"], 64, (200, 30, 30), random.Random(0))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    (folder / "images" / "t5-1.png").unlink()
    found = page(folder)
    assert "Sample images during training" in found.text
    assert "10 of 12 steps" in found.text
    assert found.text.count("step 60") == 2
    assert found.tags.count("img") == 12 + 20 - 1
    assert found.text.count("missing") == 1


def test_images_without_a_seed_have_a_row(tmp_path: Path) -> None:
    made = manifest()
    lines = metrics(made, 3)
    lines[1]["images"] = [{"path": "images/gone.png", "prompt": "a fine ring"}]
    found = page(write_run(tmp_path, made, lines))
    assert "a fine ring" in found.text
    assert "seed None" not in found.text


def test_the_command_writes_the_page_of_any_run(tmp_path: Path) -> None:
    folder = write_run(tmp_path, manifest())
    done = CliRunner().invoke(pivotune, ["report", str(folder), "--follow"])
    assert done.exit_code == 0, done.output
    assert Page((folder / "report.html").read_text("utf-8")).text.count("New embedding")
    assert write_report(folder).read_bytes() == (folder / "report.html").read_bytes()
