"""`check` reports truncated embeddings, counting tokens as the run does but without transformers."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from pivotune.pipeline.checks.recipe import check_recipe
from pivotune.pipeline.cli.check import check
from pivotune.pipeline.models.family import local_path
from pivotune.pipeline.models.tokenizers import light_tokenizers, load_tokenizers, token_limit
from pivotune.pipeline.recipe.load import load_recipe

LONG = "a red ring, " * 30
TEXTS = ["", " ", "a photo of a RED ring's  Émblem\n12 34", "don't <cat>!? 猫 naïve", "<|endoftext|> x", "zz" * 60]


@pytest.fixture
def micro(good: Path) -> Path:
    good.write_text(good.read_text("utf-8").replace(json.dumps((Path(__file__).parent / "sd1").as_posix()), '"micro"'))
    return good


def errors(path: Path, captions: list[str], *sets: str) -> list[tuple[str, str]]:
    checked = check_recipe(path, [f"concept.captions={json.dumps(captions)}", *sets], tokens=True)
    return [(one.key, one.text) for one in checked.problems if one.severity == "error"]


def test_an_embedding_truncated_in_all_captions_is_an_error(micro):
    ((key, text),) = errors(micro, [LONG + "<emblem>"])
    assert key == "embedding.1.placeholder"
    assert text.startswith("every caption is truncated before '<emblem>' (limit 75 tokens of clip_l)")


@pytest.mark.parametrize(
    ("captions", "sets"),
    [
        (["<emblem>, " + LONG], ()),
        (["<emblem>, " + LONG + "<emblem>"], ()),
        ([LONG + "<emblem>", "<emblem>"], ()),
        (["a ring " * 20 + "<emblem>"], ()),  # long enough to be counted, not truncated
        ([LONG + "<emblem>"], ("embedding.train=false", "train.lora={ rank = 2 }")),
    ],
)
def test_an_embedding_that_fits_somewhere_or_is_frozen_is_no_error(micro, captions, sets):
    assert errors(micro, captions, *sets) == []


def test_captions_of_which_some_are_truncated_are_a_warning(micro):
    captions = json.dumps([LONG + "<emblem>", "<emblem>"])
    found, long = check_recipe(micro, [f"concept.captions={captions}"], tokens=True).problems
    assert found.severity == long.severity == "warning"
    assert "captions are truncated before an embedding (for example that of" in found.text
    assert check_recipe(micro, [f"concept.captions={captions}"]).problems == []


def test_captions_longer_than_the_limit_are_counted(micro):
    """One has 75 tokens with the vector of the embedding; the others have 1, 11 and 48 more."""
    texts = ["<emblem>" + " a" * count for count in (74, 75, 85, 122)]
    found = check_recipe(micro, [f"concept.captions={json.dumps(texts)}", "embedding.tokens=1"], tokens=True).problems
    images = len(list((Path(__file__).parent / "images").glob("*.png")))
    assert [(one.severity, one.text) for one in found] == [(
        "warning", f"{3 * images} of {4 * images} captions are longer than 75 tokens; on average 20 tokens are cut; "
        "shorten them, or move what matters most to the start, or set model.prompt_chunks = 2",
    )]  # fmt: skip


def test_truncation_is_no_error_of_a_run_with_force(micro):
    assert not check_recipe(micro, [f"concept.captions={json.dumps([LONG + '<emblem>'])}"]).failed


@pytest.mark.parametrize("files", ["vocab.json and merges.txt", "tokenizer.json"])
def test_tokens_are_those_of_transformers(tmp_path, files):
    folder = shutil.copytree(local_path(load_recipe("quickstart").model), tmp_path / "model")
    for name in ("vocab.json", "merges.txt") if files == "tokenizer.json" else ("tokenizer.json",):
        (folder / "tokenizer" / name).unlink()
    sets = [f"model.base={json.dumps(folder.as_posix())}", "model.family='sd1'"]
    spec = load_recipe("quickstart", sets).model
    light, whole = light_tokenizers(spec), load_tokenizers(spec)
    assert light.keys() == whole.keys() == {"clip_l"}
    for key, one in light.items():
        assert token_limit(one) == token_limit(whole[key]) == 75
        ids = [whole[key](text, add_special_tokens=False).input_ids for text in TEXTS]
        assert [one(text).input_ids for text in TEXTS] == one(TEXTS).input_ids == ids
        assert one.convert_ids_to_tokens(ids[2]) == whole[key].convert_ids_to_tokens(ids[2])


def test_counting_loads_no_heavy_library(micro):
    sets = [f"concept.captions={json.dumps([LONG + '<emblem>'])}"]
    code = (
        "import sys; from pivotune.pipeline.checks.recipe import check_recipe\n"
        f"assert check_recipe({str(micro)!r}, {sets!r}, tokens=True).failed\n"
        "heavy = {'torch', 'numpy', 'transformers', 'diffusers', 'peft', 'safetensors', 'huggingface_hub'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_command_fails(micro):
    sets = ["--set", f"concept.captions={json.dumps([LONG + '<emblem>'])}"]
    shown = CliRunner().invoke(check, [str(micro), *sets])
    assert shown.exit_code == 1
    assert "every caption is truncated" in shown.output
