"""The table of embeddings on the command line."""

from __future__ import annotations

import subprocess
import sys

import pytest
from report.example import embedding, manifest

from pivotune.pipeline.report.table import embedding_table


def test_each_vector_has_a_line() -> None:
    lines = embedding_table(manifest([embedding("<emblem>", ("clip_l", "clip_g"), 2)])).splitlines()
    assert len(lines) == 2 + 4 + 1
    assert lines[0].split()[:4] == ["embedding", "encoder", "#", "initial"]
    assert lines[-1].startswith("norm: before -> after; usual: the vocabulary's median norm;")
    assert lines[2].startswith("<emblem>          clip_l     1  ring")
    assert "-> 0.390   0.390" in lines[2]
    assert lines[4].startswith(" " * 18 + "clip_g     1")
    assert "ring 0.62" in lines[2]


def test_as_many_nearest_tokens_as_fit_are_shown() -> None:
    made = manifest([embedding("<emblem>")])
    assert embedding_table(made, 100).splitlines()[2].endswith("  ring 0.62, teal 0.55")
    assert embedding_table(made, 120).splitlines()[2].endswith("  ring 0.62, teal 0.55, circle 0.48, tur- 0.41")
    made["embeddings"][0]["encoders"]["clip_l"]["nearest"][0][0][0] = "x" * 90 + "</w>"
    line = embedding_table(made, 100).splitlines()[2]
    assert line.endswith("xx…")
    assert len(line) == 100


def test_a_truncated_initial_text_is_named() -> None:
    trained = embedding("<emblem>")
    trained["encoders"]["clip_l"]["cut"] = ["gold", "en</w>"]
    assert '<emblem>, clip_l: initial text truncated before "gold- en"' in embedding_table(manifest([trained]))


def test_excessive_norms_are_named_unless_the_recipe_rescales() -> None:
    large, large_before, usual = embedding("<large>"), embedding("<large before>"), embedding("<usual>")
    large["encoders"]["clip_l"]["norm_after"] = [0.39, 1.95]
    large_before["encoders"]["clip_l"].update(norm_before=[1.95, 1.95], norm_after=[1.95, 1.95])
    made = manifest([usual, large, large_before], stages=[{"kind": "train"}])
    warning = "it may overpower the rest of the prompt; add a rescale stage after train"
    assert embedding_table(made).splitlines()[-2:] == [
        "norm up to 5.0 times the vocabulary's median: <large>",
        f"  ({warning})",
    ]
    assert "norm up to" not in embedding_table(manifest([large], stages=[{"kind": "train"}, {"kind": "rescale"}]))
    assert "norm up to" not in embedding_table(manifest([usual, large_before], stages=[{"kind": "train"}]))
    embeddings = [embedding(f"<{number}>", norm=9) | {"encoders": large["encoders"]} for number in range(9)]
    [line] = [line for line in embedding_table(manifest(embeddings, stages=[])).splitlines() if "norm up to" in line]
    assert line == "norm up to 5.0 times the vocabulary's median: <0>, <1>, <2>, <3>, <4> and 4 more"


@pytest.mark.parametrize(("growth", "named"), [(1e-7, False), (1e-2, True)])
def test_a_norm_that_only_rounding_increased_is_not_named(growth: float, named: bool) -> None:
    large = embedding("<large>")
    large["encoders"]["clip_l"].update(norm_before=[1.95, 1.95], norm_after=[1.95, 1.95 * (1 + growth)])
    assert ("norm up to" in embedding_table(manifest([large], stages=[{"kind": "train"}]))) is named


@pytest.mark.parametrize("name", ["x" * 100_000, "猫" * 60, "e\u0301" * 90, "a\nb\tc\x1b[2J", "\u202ex", "<|x|>"])
def test_it_fits_100_columns_and_holds_no_control_characters(name: str) -> None:
    trained = embedding(name)
    trained["encoders"]["clip_l"].update(
        norm_before=[1e9, float("nan")], norm_after=[1e-9, float("inf")], distance=[-0.0, 12345.6]
    )
    lines = embedding_table(manifest([trained])).splitlines()
    assert len(lines) == 5
    for line in lines:
        assert sum(2 if c == "猫" else 0 if c == "\u0301" else 1 for c in line) <= 100
        assert line.isprintable()


def test_of_many_embeddings_the_rest_is_counted_and_none_is_no_error() -> None:
    assert (
        embedding_table(manifest([embedding(f"w{n}") for n in range(60)]))
        .splitlines()[-2]
        .startswith("10 more embeddings")
    )
    assert embedding_table(manifest([])) == "no embeddings"
    assert embedding_table({}) == "no embeddings"


def test_a_run_that_ended_early_has_a_table() -> None:
    made = manifest([embedding("<emblem>")])
    del made["model"]
    made["embeddings"][0]["encoders"]["clip_l"].update(norm_after=[], distance=[], nearest=[])
    assert "0.348 -> -" in embedding_table(made)


def test_it_needs_no_library() -> None:
    heavy = {"torch", "numpy", "matplotlib", "jinja2"}
    code = f"import sys, pivotune.pipeline.report.table; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
