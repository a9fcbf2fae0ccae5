"""What the report page shows, and that it stays whole whatever the names and images are."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

import pytest
from PIL import Image
from report.example import artefact, embedding, manifest, metrics, write_run
from report.parsed import Page, page

from pivotune.pipeline.report.images import Gallery, pairs
from pivotune.pipeline.report.page import write_report


@pytest.mark.filterwarnings("error")
def test_an_image_with_damaged_exif_is_shown_without_a_warning(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    Image.new("RGB", (40, 40)).save(path, exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert Gallery(1).show(path).uri


def test_the_page_shows_embedding_images_and_files(tmp_path: Path) -> None:
    made = manifest()
    found = page(write_run(tmp_path, made))
    for text in (
        "<emblem>",
        "Before",
        "After",
        "a ring",
        "a <emblem>",
        "Training images",
        "seed 3",
        "embeddings/",
        "4 of 4",
    ):
        assert text in found.text
    assert found.tags.count("img") == 12  # 4 each of training, before, after
    assert found.tags.count("svg") == 4
    [distance, _] = made["embeddings"][0]["encoders"]["clip_l"]["distance"]
    assert f"{distance:.3f}" in found.text


def test_excessive_norms_are_named_with_what_to_do(tmp_path: Path) -> None:
    large = embedding("<large>")
    large["encoders"]["clip_l"]["norm_after"] = [0.39, 1.95]
    for kind, expected in (("train", True), ("rescale", False)):
        stages = [{"kind": kind, "seconds": 1.0, "inputs": [], "outputs": [], "notes": []}]
        folder = tmp_path / stages[0]["kind"]
        text = page(write_run(folder, manifest([large], stages=stages))).text
        assert ("up to 5 times the vocabulary’s median: it may overpower" in text) == expected
        assert ("add a rescale stage" in text) == expected


def test_the_page_is_self_contained(tmp_path: Path) -> None:
    found = page(write_run(tmp_path, manifest()))
    assert "script" not in found.tags
    assert "link" not in found.tags
    assert all(source.startswith(("data:image/", "#")) for source in found.sources)


def test_ids_are_unique_and_every_reference_has_its_target(tmp_path: Path) -> None:
    embeddings = [embedding("<a>", ("clip_l", "clip_g")), embedding("<b>", ("clip_l", "clip_g"))]
    html = write_report(write_run(tmp_path, manifest(embeddings))).read_text(encoding="utf-8")
    found = Page(html)
    assert len(found.ids) == len(set(found.ids))
    assert set(re.findall(r"url\(#([^)]+)\)", html)) <= set(found.ids)
    assert {source[1:] for source in found.sources if source.startswith("#")} <= set(found.ids)


def test_the_same_run_gives_the_same_bytes(tmp_path: Path) -> None:
    folder = write_run(tmp_path, manifest())
    first = write_report(folder).read_bytes()
    assert write_report(folder).read_bytes() == first
    assert sorted(p.name for p in folder.iterdir()) == ["images", "manifest.json", "metrics.jsonl", "report.html"]


HOSTILE = "<script>alert(1)</script>"


def test_markup_in_names_is_escaped(tmp_path: Path) -> None:
    rough = embedding(HOSTILE, initial_text='<b>"x"\' onerror=1')
    rough["encoders"]["clip_l"]["nearest"][0][0][0] = "<i>near</w>"
    made = manifest(
        [rough, embedding("$x^2_{$"), embedding("_hidden")], name="</title><script>", warnings=["<img src=x>"]
    )
    made["data"]["captions"] = [HOSTILE]
    found = page(write_run(tmp_path, made))
    assert "script" not in found.tags
    assert "b" in found.tags
    assert not [source for source in found.sources if source == "x"]
    for text in (HOSTILE, "$x^2_{$", "_hidden", "<img src=x>", "<i>near"):
        assert text in found.text


def test_long_or_odd_names_do_not_break_the_page(tmp_path: Path) -> None:
    names = ["x" * 5000, "line\nbreak\x1b[31m", "\u202egnp.exe", "猫", "{{ 7*7 }}"]
    found = page(write_run(tmp_path, manifest([embedding(name) for name in names])))
    assert "\\x1b[31m" in found.text
    assert "\u202e" not in found.text
    assert "猫" in found.text
    assert "{{ 7*7 }}" in found.text


def test_a_thousand_embeddings_are_folded(tmp_path: Path) -> None:
    made = manifest([embedding(f"<w{n}>", ("clip_l", "clip_g")) for n in range(1000)])
    made["stages"][0]["notes"] = [f"norm of {n}" for n in range(1000)]
    found = page(write_run(tmp_path, made, metrics(made, 4), seeds=0))
    assert "1,000 new embeddings" in found.text
    assert "950 more embeddings" in found.text
    assert "<w999>" in found.text
    assert "norm of 19" in found.text
    assert "norm of 20" not in found.text
    assert "980 more notes in manifest.json" in found.text


def test_large_images_become_thumbnails_within_the_budget(tmp_path: Path) -> None:
    made = manifest([embedding(f"<w{n}>") for n in range(25)])
    folder = write_run(tmp_path, made, metrics(made, 2), edge=32)
    noise = Image.frombytes("RGB", (768, 768), random.Random(0).randbytes(768 * 768 * 3))  # the hardest to compress
    noise.save(folder / "images/noise.jpg", quality=60)
    for sample in made["images"]:
        sample["path"] = "images/noise.jpg"
    (folder / "manifest.json").write_text(json.dumps(made), encoding="utf-8")
    found = page(folder)
    assert "omitted" in found.text


@pytest.mark.parametrize("edge", [64, 512])
def test_only_tiny_images_are_shown_without_smoothing(tmp_path: Path, edge: int) -> None:
    html = write_report(write_run(tmp_path, manifest(), edge=edge)).read_text(encoding="utf-8")
    assert ('class="image tiny"' in html) == (edge == 64)
    assert ("data:image/png" in html) == (edge == 64)


def test_files_that_belong_together_share_a_row_and_their_code_is_shown(tmp_path: Path) -> None:
    made = manifest()
    made["artefacts"] = [artefact("<emblem>", "diffusers", "a/place") | {"path": f"e{n}.safetensors"} for n in (1, 2)]
    made["artefacts"].append(made["artefacts"][0] | {"path": "load.py", "kind": "text", "program": None})
    folder = write_run(tmp_path, made)
    (folder / "load.py").write_text("pipe.load('<emblem>')", encoding="utf-8")
    text = page(folder).text
    assert text.count("a/place") == 1
    assert "e1.safetensors" in text
    assert "e2.safetensors" in text
    assert "pipe.load('<emblem>')" in text


def test_two_embeddings_with_one_initial_text_keep_their_own_images() -> None:
    sample = {"embedding": None, "path": "", "seed": 0}
    before = [sample | {"when": "before", "prompt": "ring, ring"} for _ in range(2)]
    after = [sample | {"when": "after", "prompt": prompt} for prompt in ("<a>, <b>", "<b>, <a>")]
    found = pairs([*before, *after], None)
    assert [(b["prompt"], a["prompt"]) for b, a, _ in found] == [("ring, ring", "<a>, <b>"), ("ring, ring", "<b>, <a>")]


@pytest.mark.parametrize(
    ("options", "averaged"),
    [({}, False), ({"ema": 0.99}, True), ({"optimizer": {"kind": "prodigy-schedule-free"}}, True)],
)
def test_curves_of_raw_weights_say_that_files_contain_ema_weights(tmp_path: Path, options, averaged) -> None:
    made = manifest()
    for stage in made["recipe"]["stage"]:
        if stage["kind"] == "train":
            stage |= {"embeddings": True, **options}
    text = page(write_run(tmp_path, made, metrics(made, 3))).text
    assert ("exported files contain the averaged (EMA) weights" in text) == averaged
