"""A plan: tokens of initial texts, captions before and after, truncated embeddings; no weights."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pivotune.pipeline.checks.plan import Plan, make_plan
from pivotune.pipeline.checks.plan_text import join_tokens, plan_json, plan_text
from pivotune.pipeline.errors import StageError
from pivotune.pipeline.models.tokenizers import load_tokenizers, token_limit
from pivotune.pipeline.recipe.document import shipped_folder
from pivotune.pipeline.recipe.load import load_recipe
from pivotune.pipeline.recipe.model import ModelSpec

MICRO = shipped_folder() / "micro" / "model"


def spec(base: str | Path, family: str | None = None, config: str | None = None) -> ModelSpec:
    return ModelSpec(str(base), family, "float32", None, None, config)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in the shape of SDXL, with tokenizers and nothing else."""
    folder = tmp_path_factory.mktemp("two")
    (folder / "model_index.json").write_text('{"_class_name": "StableDiffusionXLPipeline"}')
    (folder / "unet").mkdir()
    (folder / "unet" / "config.json").write_text('{"cross_attention_dim": 2048}')
    for name in ("tokenizer", "tokenizer_2"):
        shutil.copytree(MICRO / "tokenizer", folder / name)
    return folder


def planned(good: Path, two: Path, *overrides: str) -> Plan:
    recipe = load_recipe(good, [f"model.base={two}", *overrides])
    return make_plan(recipe, load_tokenizers(recipe.model))


def test_tokenizers_by_encoder(two: Path) -> None:
    assert list(load_tokenizers(spec("micro"))) == ["clip_l"]
    assert list(load_tokenizers(spec(two))) == ["clip_l", "clip_g"]
    assert {token_limit(tokenizer) for tokenizer in load_tokenizers(spec(two)).values()} == {75}


def test_a_single_file_takes_its_tokenizers_from_the_config(two: Path, tmp_path: Path) -> None:
    (tmp_path / "m.safetensors").write_bytes(b"")
    assert list(load_tokenizers(spec(tmp_path / "m.safetensors", "sdxl", str(two)))) == ["clip_l", "clip_g"]
    with pytest.raises(StageError, match=r"m\.safetensors is a single file; its tokenizers need model\.config"):
        load_tokenizers(spec(tmp_path / "m.safetensors", "sdxl"))


def test_a_broken_tokenizer_is_an_error(two: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(two, tmp_path / "broken")
    (broken / "tokenizer" / "tokenizer_config.json").write_text("{")
    with pytest.raises(StageError, match=r"tokenizer/tokenizer_config\.json: not JSON"):
        load_tokenizers(spec(broken))


def test_a_hub_without_a_network_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    code = (
        "from pivotune.pipeline.models.tokenizers import load_tokenizers, ModelSpec\n"
        "from pivotune.pipeline.errors import StageError\n"
        "try: load_tokenizers(ModelSpec('owner/none', 'sd1', '', None, None, None))\n"
        "except StageError as error: print(error)"
    )
    environment = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "PATH": "/usr/bin"}
    shown = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert "the tokenizers of owner/none cannot be downloaded from the hub" in shown.stdout


def test_initial_texts_are_truncated_and_padded(good: Path, two: Path) -> None:
    plan = planned(good, two, "embedding.initial_text=photo of", "embedding.tokens=3")
    made = plan.embeddings["<emblem>"]["clip_g"]
    assert (len(made.ids), made.kept, made.padded, made.cut) == (3, 2, 1, ())
    plan = planned(good, two, "embedding.initial_text=a photo of", "embedding.tokens=2")
    assert plan.embeddings["<emblem>"]["clip_l"].cut == ("of</w>",)
    assert "2 vectors: a photo; truncated of" in plan_text(plan)


def test_captions_before_and_after(good: Path, two: Path) -> None:
    plan = planned(good, two, "embedding.tokens=2", 'concept.captions=["a photo of <Emblem>, on red"]')
    caption = plan.captions[0]
    assert caption.after == "a photo of [<emblem> 1][<emblem> 2], on red"
    assert caption.tokens == {"clip_l": 8, "clip_g": 8}
    assert caption.truncated == ()
    assert plan.captions_with == {"<emblem>": 3}


def test_counts_are_those_of_the_tokenizer(good: Path, two: Path) -> None:
    tokenizer: Any = load_tokenizers(spec(two))["clip_l"]
    text = "a photo of emblem's, RED; zürich 123"
    plan = planned(good, two, f"concept.captions={json.dumps([text])}")
    assert plan.captions[0].tokens["clip_l"] == len(tokenizer(text, add_special_tokens=False).input_ids)


@pytest.mark.parametrize(("before", "truncated"), [(72, ()), (73, ()), (74, ("<emblem>",)), (90, ("<emblem>",))])
def test_an_embedding_beyond_the_limit_is_truncated(
    good: Path, two: Path, before: int, truncated: tuple[str, ...]
) -> None:
    caption = "a " * before + "<emblem>"
    plan = planned(good, two, "embedding.tokens=2", f"concept.captions={json.dumps([caption])}")
    assert plan.captions[0].truncated == truncated
    assert ("truncated before" in plan_text(plan)) == bool(truncated)


def test_captions_longer_than_the_limit_are_counted_for_each_encoder(good: Path, two: Path) -> None:
    texts = json.dumps(["<emblem>", "<emblem>" + " a" * 75])
    plan = planned(good, two, "embedding.tokens=1", f"concept.captions={texts}")
    (line,) = plan.long_captions
    assert line.startswith("3 of 6 captions are longer than 75 tokens of clip_l and clip_g; on average 1 token is cut;")
    assert f"  warning: {line}\n" in plan_text(plan) + "\n"
    lower = replace(plan, limits={"clip_l": 75, "clip_g": 50})
    assert [text.partition(";")[0] for text in lower.long_captions] == [
        "3 of 6 captions are longer than 75 tokens of clip_l", "3 of 6 captions are longer than 50 tokens of clip_g",
    ]  # fmt: skip
    assert planned(good, two).long_captions == []


def test_wildcards_count_with_their_longest_part(good: Path, two: Path) -> None:
    text = json.dumps(["<emblem> {a|b c d} ||| e"])
    plan = planned(
        good, two, f"concept.captions={text}", "concept.wildcards=true", "concept.keep_separator='|||'",
        "embedding.tokens=1",
    )  # fmt: skip
    assert plan.captions[0].before == "<emblem> b c d, e"
    assert plan.captions[0].tokens["clip_l"] == 6


def test_the_input_and_output_of_stages(good: Path, two: Path) -> None:
    overrides = ("train.lora={rank = 4}", "train.batch_size=2", "train.gradient_accumulation=3", "concept.repeats=2")
    plan = planned(good, two, *overrides)
    train, export = plan.stages[2:]
    assert train.outputs == "trained vectors of <emblem> and a LoRA of rank 4 on the denoiser"
    assert (train.steps, train.images, train.epochs) == (10, 60, 10.0)
    assert export.inputs == "vectors and the LoRA"
    assert "10 steps, 60 images, 10.0 epochs" in plan_text(plan)


def test_a_plan_is_json(good: Path, two: Path) -> None:
    document = json.loads(json.dumps(plan_json(planned(good, two))))
    assert document["token_limits"] == {"clip_l": 75, "clip_g": 75}
    assert document["embeddings"]["<emblem>"]["clip_l"]["kept"] == 1
    assert document["captions"][0]["tokens"]["clip_l"] > 0


def test_tokens_are_joined_to_text() -> None:
    assert join_tokens(["ring</w>", "em", "blem</w>", "x"]) == "ring em·blem x·"
