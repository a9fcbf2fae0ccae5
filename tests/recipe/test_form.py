"""A wrong form hides nothing that is wrong elsewhere, and nothing is reported as its consequence."""

from __future__ import annotations

import copy
import datetime
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tomli
from PIL import Image

from pivotune.pipeline.checks.recipe import check_recipe, check_valid_parts
from pivotune.pipeline.recipe.document import Document, shipped
from pivotune.pipeline.recipe.form import form_of
from pivotune.pipeline.recipe.load import MAX_PROBLEMS, validated

HERE = Path(__file__).parent
# Without any one of its settings this recipe would have a finding, or a different meaning.
RICH = """
name = "rich"
[model]
base = "model"
family = "sd1"
[data]
balance = "concepts"
buckets = true
bucket_step = 8
[[concept]]
images = "images"
captions = ["a BREAK", "a <still> and a <first>"]
recursive = true
[[concept]]
images = "images"
captions = ["a thing"]
recursive = true
prior = true
[[concept]]
images = "drawn"
prior = true
generate = { prompts = ["a thing"], count = 4 }
[[embedding]]
placeholder = "BREAK"
learning_rate = { clip_l = 0.1 }
preserve_norm = { low = 0.5, high = 2 }
stop_after = "60 %"
[[embedding]]
placeholder = "<still>"
train = false
[[embeddings_from]]
table = "embeddings.csv"
ignore = ["note"]
[embeddings_from.embedding]
initial_text = "{text}"
train = false
[[stage]]
kind = "tokenize"
[[stage]]
kind = "inject"
encoders = ["clip_l"]
[[stage]]
kind = "train"
steps = 10
batch_size = 64
resolution = 64
schedule = { kind = "piecewise", pieces = [[0, 1.0], [0.5, 0.1]] }
learning_rate = { clip_l = 0.1 }
warmup_steps = 5
objective = { zero_terminal_snr = true, prediction = "v_prediction" }
timesteps = { low = 10, high = 900 }
lora = [{ rank = 4, parts = ["denoiser"], warmup_steps = 2 }]
locality = { prompts = ["a house"] }
watch = { sample_every = "5 steps" }
save = { every = "5 steps" }
[[stage]]
kind = "train"
steps = 20
embeddings = false
caption_dropout = 1
schedule = { kind = "piecewise", pieces = [[0, 1.0], [0.5, 0.1]] }
finetune = { parts = ["clip_l"] }
[[stage]]
kind = "rescale"
to = { low = 0.5, high = 2 }
[[stage]]
kind = "export"
targets = ["sdnext"]
files = "one"
[checkpoint]
every = "5 steps"
[samples]
prompts = ["a <still>"]
"""


@pytest.fixture
def rich(tmp_path: Path) -> Path:
    shutil.copytree(HERE / "sd1", tmp_path / "model")
    (tmp_path / "images" / "inner").mkdir(parents=True)
    for name in ("a", "b", "c"):
        Image.new("RGB", (128, 32)).save(tmp_path / "images" / "inner" / f"{name}.png")
    (tmp_path / "embeddings.csv").write_text("name,note\n<first>,x\n", "utf-8")
    path = tmp_path / "rich.toml"
    path.write_text(RICH, "utf-8")
    return path


def spoilt(value: Any) -> Iterator[Any]:
    """The document with one value that no schema allows, or one key that no schema knows, at each place in turn."""
    items = list(value.items() if isinstance(value, dict) else enumerate(value))
    for key, item in items:
        yield put(value, key, datetime.time(12))
        yield put(value, key, float("nan"))
        if isinstance(value, dict):
            for other in (f"{key}s", f"{key}"[:-1] or "x", "zzqq"):
                if other not in value:
                    yield {(other if name == key else name): inner for name, inner in items}
        if isinstance(item, (dict, list)):
            for inner in spoilt(item):
                yield put(value, key, inner)


def put(value: Any, key: Any, item: Any) -> Any:
    changed = copy.copy(value)
    changed[key] = item
    return changed


def test_a_wrong_form_has_no_consequences(rich: Path) -> None:
    data = tomli.loads(rich.read_text("utf-8"))
    assert check_recipe(rich).problems == []
    refused = 0
    for wrong in spoilt(data):
        document = Document(rich, "", wrong)
        if form_of(wrong, MAX_PROBLEMS).problems:
            refused += 1
            assert [problem.shown("") for problem in check_valid_parts(document)] == [], (wrong, validated(document)[2])
    assert refused > 200


@pytest.mark.parametrize("name", ["quickstart", "pivotal"])
def test_a_shipped_recipe_of_a_wrong_form_has_no_consequences(name: str) -> None:
    path = shipped()[name]
    for wrong in spoilt(tomli.loads(path.read_text("utf-8"))):
        if form_of(wrong, MAX_PROBLEMS).problems:
            assert [problem.shown("") for problem in check_valid_parts(Document(path, "", wrong))] == []


# One problem of the form, and one of what is asked for.
FORM = {
    "seed": "seed='x'",
    "unknown": "embedding.zzqq=1",
    "samples": "samples.zzqq=1",
    "checkpoint": "checkpoint.every='0 steps'",
    "train": "train.batch_sise=4",
    "optimizer": "train.optimizer.kind='adamm'",
    "tokenize": "tokenize.pad_with=3",
    "dtype": "model.dtype='float64'",
    "tokens": "embedding.tokens=0",
}
MEANT = {
    "images": ("concept.images='nowhere'", "nowhere does not exist"),
    "model": ("model.base='./nowhere'", "nowhere does not exist"),
    "embedding": ("embedding.placeholder='<other>'", "none of the 3 captions contains '<other>'"),
    "warmup": ("train.warmup_steps=1.5", "1.5 is neither a whole number of steps"),
    "rate": ("train.learning_rate={ clip_x = 0.1 }", "has no text encoder 'clip_x'"),
    "band": ("train.preserve_norm={ low = 2, high = 1 }", "low = 2 is greater than high = 1"),
    "target": ("export.files='pack'", "loads one embedding per file"),
    "name": ("name='con'", "is a device on Windows"),
}


@pytest.mark.parametrize("form", FORM)
@pytest.mark.parametrize("meant", MEANT)
def test_a_schema_violation_does_not_hide_other_problems(good: Path, form: str, meant: str) -> None:
    override, embeddings = MEANT[meant]
    problems = check_recipe(good, [FORM[form], override]).problems
    shown = "\n".join(problem.shown("") for problem in problems)
    assert f"--set {FORM[form]}" in shown
    assert embeddings in shown


def test_the_rest_of_a_list_keeps_its_lines_and_numbers(good: Path) -> None:
    text = good.read_text("utf-8")
    text = text.replace("[[concept]]", "[[concept]]\nrepeats = 2\n[[concept]]").replace(
        json.dumps((HERE / "images").as_posix()), '"nowhere"'
    )
    good.write_text(text, "utf-8")
    line = text.split("\n").index('images = "nowhere"') + 1
    problems = [(problem.key, problem.line) for problem in check_recipe(good).problems]
    assert problems == [("concept.1", 5), ("concept.2.images", line)]


def test_whether_embeddings_are_trained_is_not_guessed(good: Path) -> None:
    without = ["embedding.placeholder=other", "concept.captions=['a house']", "train.lora={}"]
    assert check_recipe(good, [*without, "train.embeddings=false"]).problems == []
    assert len(check_recipe(good, [*without, "train.embeddings='no'"]).problems) == 1


def test_where_embeddings_come_from_is_not_guessed(good: Path) -> None:
    """Neither embeddings nor images are missing: they may be in the folder."""
    before, rest = good.read_text("utf-8").split("[[concept]]")
    stages = rest[rest.index("[[stage]]") :]
    good.write_text(f'{before}[[embeddings_from]]\nfolder = "x"\n{stages}', "utf-8")
    assert [problem.key for problem in check_recipe(good).problems] == ["embeddings_from.1.folder"]


def test_a_wrong_type_where_nothing_is_also_allowed(good: Path) -> None:
    (problem,) = check_recipe(good, ["inject.encoders=3"]).problems
    assert problem.text == "expected a list, got 3"


def test_stages_are_not_put_in_order_when_one_is_unknown(good: Path) -> None:
    text = good.read_text("utf-8").replace('kind = "inject"', 'kind = "injekt"')
    good.write_text(text.replace("steps = 10", "steps = 10\nwarmup_steps = 1.5"), "utf-8")
    assert [problem.key for problem in check_recipe(good).problems] == ["stage.2.kind", "stage.3.warmup_steps"]


def test_a_misspelt_key_is_not_reported_as_missing_too(good: Path) -> None:
    good.write_text(good.read_text("utf-8").replace("steps = 10", "step = 10"), "utf-8")
    assert [problem.key for problem in check_recipe(good).problems] == ["stage.3.step"]
    good.write_text(good.read_text("utf-8").replace("step = 10", "zzqq = 10"), "utf-8")
    assert [problem.key for problem in check_recipe(good).problems] == ["stage.3", "stage.3.zzqq"]
