"""The report page of runs that broke off, and of folders that lack something."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

import pytest
from report.example import embedding, manifest, metrics, ring, write_run
from report.parsed import page

from pivotune.pipeline.errors import StageError
from pivotune.pipeline.report.page import write_report


def test_a_failed_run_shows_its_error_and_progress(tmp_path: Path) -> None:
    changes = {"status": "failed", "error": "the loss is not a number", "artefacts": [], "proofs": {}}
    made = manifest(**changes)
    lines = metrics(made, 9)
    lines[-1]["loss"] = float("nan")
    folder = write_run(tmp_path, made, lines)
    made["images"] = [p for p in made["images"] if p["when"] == "before"]
    (folder / "manifest.json").write_text(json.dumps(made), encoding="utf-8")
    found = page(folder)
    for text in ("This run failed", "the loss is not a number", "not drawn", "not reached", "0 of 4"):
        assert text in found.text
    assert "trained to the end" not in found.text


@pytest.mark.parametrize("status", ["running", "failed"])
def test_a_run_that_ended_at_once_has_a_page(tmp_path: Path, status: str) -> None:
    made = manifest(
        [], status=status, error="no images" if status == "failed" else None, stages=[], artefacts=[], proofs={}
    )
    del made["model"], made["data"]
    found = page(write_run(tmp_path, made, []))
    assert "before a model was loaded" in found.text
    assert "svg" not in found.tags


@pytest.mark.parametrize("steps", [0, 1, 2])
def test_few_steps_are_enough(tmp_path: Path, steps: int) -> None:
    made = manifest()
    found = page(write_run(tmp_path, made, metrics(made, steps)))
    assert found.tags.count("svg") == (4 if steps else 0)


def test_losses_that_are_not_finite_are_left_out_of_the_curve(tmp_path: Path) -> None:
    made = manifest()
    lines = metrics(made, 20)
    for line, loss in zip(lines, [float("nan"), float("inf"), None] * 6, strict=False):
        line["loss"] = loss
    html = write_report(write_run(tmp_path, made, lines)).read_text(encoding="utf-8")
    assert "nan" not in re.sub(r"data:image/[^\"]*", "", html).lower()


def test_missing_or_corrupt_images_are_named_in_their_place(tmp_path: Path) -> None:
    made = manifest()
    folder = write_run(tmp_path / "run", made)
    ring(tmp_path / "secret.png", 64, (0, 0, 0), random.Random(0))
    (folder / "images/0-before-0.png").unlink()
    (folder / "images/0-before-1.png").write_bytes(b"\x89PNG\r\n\x1a\nnot really")
    (folder / "images/0-before-2.png").unlink(missing_ok=True)
    (folder / "manifest.json").write_text(json.dumps(made), encoding="utf-8")
    found = page(folder)
    assert found.text.count("missing") == 2
    assert found.text.count("unreadable") == 1
    assert found.tags.count("img") == 9


def test_inaccessible_files_do_not_prevent_the_page(tmp_path: Path, monkeypatch) -> None:
    folder = write_run(tmp_path / "run", manifest())
    made = json.loads((folder / "manifest.json").read_text("utf-8"))
    made["data"]["files"]["x" * 300 + ".png"] = "0" * 64  # no file system has such a name: looking for it is an error
    made["images"] = [{"path": f"images/{'y' * 300}.png", "when": "after", "prompt": "x", "embedding": None, "seed": 0}]
    (folder / "manifest.json").write_text(json.dumps(made), encoding="utf-8")

    def forbidden(path: Path) -> str:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("pivotune.pipeline.report.images.file_hash", forbidden)
    found = page(folder)
    assert "unreadable" in found.text
    assert "missing" in found.text


def test_training_images_are_found_from_the_recipe(tmp_path: Path) -> None:
    made = manifest()
    made["recipe"]["concept"] = [{"images": str(tmp_path / "recipes/images")}]
    folder = write_run(tmp_path / "run", made)
    (tmp_path / "recipes/images").mkdir(parents=True)
    for name in [n for n in made["data"]["files"] if n.endswith(".png")]:
        (folder / name).rename(tmp_path / "recipes" / name)
    assert page(folder).tags.count("img") == 12


def test_an_image_with_other_content_is_not_shown(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", manifest())
    made = json.loads((folder / "manifest.json").read_text("utf-8"))
    ring(tmp_path / "private.png", 64, (200, 20, 20), random.Random(5))
    before = page(folder).tags.count("img")
    name = next(name for name in made["data"]["files"] if name.endswith(".png"))
    (tmp_path / "private.png").replace(folder / name)  # what a manifest from elsewhere names is not what it says
    assert page(folder).tags.count("img") == before - 1


def test_each_embedding_shows_its_own_training_images(tmp_path: Path) -> None:
    embeddings = [embedding("<a>", images=["images/0.png", "images/1.png"]), embedding("<b>", images=["images/2.png"])]
    found = page(write_run(tmp_path, manifest(embeddings)))
    assert found.text.count("Training images") == 3  # two panels and the tile
    assert found.tags.count("img") == 16 + 3


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "metrics.jsonl: missing"), (b"", "metrics.jsonl: empty"), (b"\xff\x00garbage\n", "1 unreadable line"),
        (b'{"stage": 3, "step": 1, "loss": NaN}\n[]\n', "2 unreadable lines"), ("link", "is a link"),
    ],
)  # fmt: skip
def test_missing_or_unreadable_metrics_are_named_on_the_page_and_the_command_line(
    tmp_path: Path, content: bytes | str | None, expected: str
) -> None:
    folder = write_run(tmp_path / "run", manifest())
    lines = folder / "metrics.jsonl"
    if content == "link":
        lines.rename(tmp_path / "elsewhere")
        lines.symlink_to(tmp_path / "elsewhere")
    elif isinstance(content, bytes):
        lines.write_bytes(content)
    else:
        lines.unlink()
    warned: list[str] = []
    text = write_report(folder, warn=warned.append).read_text("utf-8")
    assert len(warned) == 1
    assert expected in warned[0]
    assert warned[0] in text


def test_a_truncated_line_is_counted_and_a_repeated_step_counts_once(tmp_path: Path) -> None:
    made = manifest()
    lines = metrics(made, 10)
    folder = write_run(tmp_path, made, [*lines[:6], *lines[3:]])
    with (folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"stage": 2, "st')
    text = page(folder).text
    assert "left out of the curves: 1 unreadable line" in text
    assert re.search(r"Steps\s*10\b", text)


@pytest.mark.parametrize("content", [None, "{", "[1]", "\udcff"])
def test_a_folder_that_is_no_run_folder_is_refused_with_the_reason(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "manifest.json").write_text(content, encoding="utf-8", errors="surrogateescape")
    with pytest.raises(StageError, match=r"manifest"):
        write_report(tmp_path)
