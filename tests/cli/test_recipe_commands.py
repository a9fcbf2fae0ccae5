"""check, run, plan, new, tokens and schema: what they print, where, and with which exit code."""

from __future__ import annotations

import json
import shutil
import signal
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import jsonschema
import pytest

from pivotune import schemas
from pivotune.converters.errors import ConvertError
from pivotune.converters.families import families
from pivotune.pipeline.cli.new import with_keys
from pivotune.pipeline.errors import StageError
from pivotune.pipeline.recipe.document import shipped, shipped_folder
from pivotune.pipeline.run.signals import Stopped


@pytest.fixture
def runner(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> SimpleNamespace:
    """Stands in for the runner, so that no model is loaded; `seen` is what it was called with."""
    seen = SimpleNamespace(recipe=None, options={}, error=None)

    def run_recipe(recipe: Any, stages: Any, **options: Any) -> SimpleNamespace:
        seen.recipe, seen.options = recipe, options
        options["progress"]("loading")
        if seen.error is not None:
            raise seen.error
        return SimpleNamespace(folder=tmp_path, report=tmp_path / "report.html", summary="embedding  norm")

    module = ModuleType("pivotune.pipeline.run.runner")
    module.run_recipe = run_recipe  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pivotune.pipeline.run.runner", module)
    return seen


def test_check_says_ok_and_what_there_is(call, recipe: Path) -> None:
    shown = call("check", recipe)
    assert (shown.code, shown.err) == (0, "")
    assert shown.out == f"{recipe}: ok (3 images, 3 captions; <emblem> in 100 %)\n"


def test_check_prints_every_problem_of_every_recipe(call, recipe: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.toml"
    bad.write_text(recipe.read_text("utf-8").replace("steps", "stps").replace("train", "trian"))
    shown = call("check", recipe, bad, tmp_path)
    assert shown.code == 1
    assert shown.out == f"{recipe}: ok (3 images, 3 captions; <emblem> in 100 %)\n"
    assert f"{bad}:14: stage.3.kind: unknown value 'trian'; did you mean 'train'?" in shown.err
    assert f"{tmp_path}: is a folder" in shown.err


def test_check_as_json(call, recipe: Path) -> None:
    shown = call("check", recipe, "--json", "--set", "train.steps=0")
    (report,) = json.loads(shown.out)
    assert shown.code == 1
    assert report["ok"] is False
    assert report["problems"] == [
        {
            "severity": "error",
            "line": 0,
            "key": "--set train.steps=0",
            "text": "0 is too small; the minimum is 1",
            "file": str(recipe),
        }
    ]


def test_check_strict_counts_warnings(call, recipe: Path) -> None:
    warned = ("check", recipe, "--set", "train.warmup_steps=10")
    assert call(*warned).code == 0
    assert call(*warned, "--strict").code == 1


def test_run_hands_the_recipe_to_the_runner(call, recipe: Path, runner: SimpleNamespace, tmp_path: Path) -> None:
    shown = call("run", recipe, "--out", tmp_path / "x", "--device", "cpu", "--set", "seed=5")
    assert shown.code == 0
    assert shown.out == f"embedding  norm\nReport: {tmp_path / 'report.html'}\n"
    assert shown.err == "loading\n"
    assert (runner.recipe.name, runner.recipe.device, runner.recipe.seed) == ("mine", "cpu", 5)
    assert runner.options["out"] == tmp_path / "x"
    assert (runner.options["fresh"], runner.options["source"], runner.options["force"]) == (False, None, False)


def test_run_hands_every_option_to_the_runner(call, recipe: Path, runner: SimpleNamespace, tmp_path: Path) -> None:
    assert call("run", recipe, "--fresh", "--force", "--from-checkpoint", tmp_path).code == 0
    assert (runner.options["fresh"], runner.options["source"], runner.options["force"]) == (True, tmp_path, True)


def test_run_as_json(call, recipe: Path, runner: SimpleNamespace, tmp_path: Path) -> None:
    shown = call("run", recipe, "--json")
    assert json.loads(shown.out) == {"folder": str(tmp_path), "report": str(tmp_path / "report.html")}
    assert runner.options["bar"] is False


def test_run_checks_first(call, recipe: Path, runner: SimpleNamespace) -> None:
    shown = call("run", recipe, "--set", "concept.images=nowhere", "--device", "gpu")
    assert shown.code == 1
    assert shown.err.startswith(f"Error: {recipe}: --set device=")
    assert runner.recipe is None


def test_run_shows_warnings(call, recipe: Path, runner: SimpleNamespace) -> None:
    assert "warning: the warmup takes all" in call("run", recipe, "--set", "train.warmup_steps=10").err


@pytest.mark.parametrize("error", [StageError("stage 3 (train): no gradient"), ConvertError("a.bin: no file")])
def test_errors_for_people_are_a_line_and_exit_code_1(
    call, recipe: Path, runner: SimpleNamespace, error: Exception
) -> None:
    runner.error = error
    shown = call("run", recipe)
    assert shown.code == 1
    assert shown.err.endswith(f"Error: {error}\n")


@pytest.mark.parametrize(
    ("stop", "text", "code"),
    [
        (Stopped("Stopped by SIGTERM after step 2 of 3", signal.SIGTERM), "Stopped by SIGTERM after step 2 of 3", 143),
        (Stopped("Stopped at once"), "Stopped at once", 130),
        (KeyboardInterrupt(), "Stopped by Ctrl-C", 130),
    ],
)
def test_a_stop_is_no_error_and_has_the_exit_code_of_shells(
    call, recipe: Path, runner: SimpleNamespace, stop: BaseException, text: str, code: int
) -> None:
    runner.error = stop
    shown = call("run", recipe)
    assert (shown.code, shown.err) == (code, f"loading\n{text}\n")


def test_other_errors_keep_their_traceback(call, recipe: Path, runner: SimpleNamespace) -> None:
    runner.error = KeyError("a bug of ours")
    with pytest.raises(KeyError, match="a bug of ours"):
        call("run", recipe)


def test_new_lists_templates(call) -> None:
    shown = call("new").out.splitlines()
    assert [line.split()[0] for line in shown] == sorted(shipped())
    assert {"pivotal", "quickstart", "sd15"} <= set(shipped())
    assert all(len(line.split()) > 4 for line in shown)
    starts = {line.index(line.split(maxsplit=1)[1]) for line in shown}
    assert len(starts) == 1


def test_new_writes_a_recipe_that_runs_as_it_is(call, tmp_path: Path) -> None:
    target = tmp_path / "my-embedding.toml"
    assert call("new", "quickstart", "--out", target).code == 0
    text = target.read_text("utf-8")
    assert 'name = "my-embedding"' in text
    assert "# ten images of a subject" in text  # comments are kept
    schema = text.splitlines()[0].removeprefix("#:schema file://")
    assert json.loads(Path(schema).read_text("utf-8")) == schemas.bundled()
    assert call("check", target).code == 0


def test_new_never_overwrites_unasked(call, tmp_path: Path) -> None:
    target = tmp_path / "mine.toml"
    target.write_text("precious")
    shown = call("new", "quickstart", "--out", target)
    assert (shown.code, target.read_text()) == (1, "precious")
    assert "already exists; choose another --out" in shown.err
    assert call("new", "quickstart", "--out", target, "--overwrite").code == 0
    assert target.read_text() != "precious"


@pytest.mark.parametrize(
    ("name", "embeddings"), [("a b.toml", "is not a name made of"), ("no/x.toml", "cannot be written")]
)
def test_new_says_why_it_cannot(call, tmp_path: Path, name: str, embeddings: str) -> None:
    shown = call("new", "sd15", "--out", tmp_path / name)
    assert shown.code == 1
    assert embeddings in shown.err


def test_plan_of_what_ships(call) -> None:
    shown = call("plan", "quickstart")
    assert shown.code == 0
    assert "Disk: " in shown.out
    assert "a photo of [<my-emblem> 1][<my-emblem> 2] on" in shown.out
    assert "clip_l: 2 vectors: ring; padded with *" in shown.out
    assert json.loads(call("plan", "quickstart", "--json", "--no-estimates").out)["preflight"] is None


def test_plan_reports_a_corrupt_image(call, tmp_path: Path) -> None:
    made = tmp_path / "mine.toml"
    assert call("new", "quickstart", "--out", made).code == 0
    shutil.copytree(shipped_folder() / "images" / "emblem", tmp_path / "images")
    image = tmp_path / "images" / "emblem-3.png"
    data = image.read_bytes()
    middle = len(data) // 2
    image.write_bytes(data[:middle] + bytes(50) + data[middle + 50 :])
    planned = call("plan", made, "--set", f"concept.images={json.dumps(str(tmp_path / 'images'))}")
    assert planned.code == 0
    assert f"  error: {image}: not a readable image" in planned.out


def test_plan_of_a_model_without_tokenizers(call, recipe: Path) -> None:
    shown = call("plan", recipe)
    assert shown.code == 1
    assert "has no tokenizer" in shown.err


def test_tokens_of_a_text(call) -> None:
    shown = call("tokens", "a photo of a ring")
    assert shown.out.startswith("clip_l: 5 of 75 tokens\n")
    encoders = json.loads(call("tokens", "a photo of a ring é", "--json").out)["encoders"]
    assert encoders["clip_l"]["pieces"][:5] == ["a", "photo", "of", "a", "ring"]
    assert encoders["clip_l"]["count"] == len(encoders["clip_l"]["ids"])
    assert call("tokens", " ").out == "clip_l: 0 of 75 tokens\n"


def test_tokens_of_a_model_that_is_not_there(call) -> None:
    shown = call("tokens", "a", "--model", "nowhere")
    assert shown.code == 1
    assert "'nowhere' is not a file, a folder or a hub id" in shown.err


def test_tokens_of_a_family_that_is_not_known(call) -> None:
    shown = call("tokens", "a", "--family", "sdx")
    assert shown.code == 1
    assert f"known: {', '.join(families())}" in shown.err


def test_names_in_errors_do_not_steer_the_terminal(call, monkeypatch) -> None:
    def failing(**options: object) -> None:
        raise StageError("a\x1b[2J\udcff\nb")

    monkeypatch.setattr("pivotune.pipeline.cli.schema.schema.callback", failing)
    shown = call("schema")
    assert (shown.code, shown.err) == (1, "Error: a\\x1b[2J\\udcff\nb\n")


def test_schemas_are_printed(call) -> None:
    recipe = json.loads(call("schema", "recipe").out)
    jsonschema.Draft7Validator(recipe).validate(
        {"name": "x", "model": {"base": "micro"}, "stage": [{"kind": "inject"}]}
    )
    assert json.loads(call("schema", "train").out)["title"] == "train"
    assert call("schema", "stages/train.json").out == call("schema", "train").out
    assert Path(call("schema", "recipe", "--path").out.strip()).name == "editor.json"
    assert "train" in call("schema").out


@pytest.mark.parametrize(
    ("table", "right", "wrong"),
    [
        ("checkpoint", {"every": "5 minutes", "keep": 2}, {"evry": "5 minutes"}),
        ("embeddings_from", {"table": "embeddings.csv"}, {"tabel": "embeddings.csv"}),
        ("model", {"base": "micro"}, {"bse": "micro"}),
        ("data", {}, {"cache": 1}),
        ("samples", {"count": 1}, {"count": "one"}),
        (
            "stage",
            {"kind": "train", "steps": 5, "lora": {"rank": 2}},
            {"kind": "train", "steps": 5, "lora": {"rnk": 2}},
        ),
        ("norm_band", {}, {"loww": 1}),
        ("huber", {}, {"c": 1}),
    ],
)
def test_every_table_of_options_has_a_schema(call, table: str, right: dict, wrong: dict) -> None:
    made = json.loads(call("schema", table).out)
    check = jsonschema.Draft7Validator(made)
    assert (check.is_valid(right), check.is_valid(wrong)) == (True, False)
    assert f"\n{table} " in call("schema").out
    assert Path(call("schema", table, "--path").out.strip()).is_file()


def test_tokens_of_a_family_asks_for_a_well_known_model_of_it(call, monkeypatch, tmp_path) -> None:
    import huggingface_hub

    asked = []

    def snapshot(name, **options):
        asked.append(name)
        raise OSError("no network here")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    shown = call("tokens", "a ring", "--family", "sd1")
    assert shown.code == 1
    assert asked == ["stable-diffusion-v1-5/stable-diffusion-v1-5"]
    assert "use a diffusers folder of the same family instead" in shown.err


def test_a_launcher_that_asks_for_deepspeed_is_refused_in_one_line(call, recipe, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    refused = call("run", recipe, "--out", tmp_path / "run")
    assert refused.code == 1
    assert "DeepSpeed is not supported" in refused.err
    assert "--use_fsdp --fsdp_version 2" in refused.err
    assert refused.err.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_template_is_not_named_after_a_device(call, tmp_path: Path) -> None:
    shown = call("new", "quickstart", "--out", tmp_path / "CON.toml")
    assert (shown.code, list(tmp_path.iterdir())) == (1, [])
    assert "it is a device on Windows" in shown.err


def test_tokens_do_not_steer_the_terminal(call) -> None:
    shown = call("tokens", "\x1b[31m")
    assert (shown.code, "\x1b" in shown.out, "\\x1b" in shown.out) == (0, False, True)


def test_a_path_too_long_is_reported_with_its_key(call) -> None:
    shown = call("check", "quickstart", "--set", f"concept.1.images={'p' * 5000}")
    assert (shown.code, "does not exist" in shown.err) == (1, True)
    assert shown.err.startswith("quickstart: --set concept.1.images")


def test_plan_says_what_fits_without_the_model(call, monkeypatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    shown = call("plan", "flux-embedding-lora", "--vram", "12")
    assert (shown.code, shown.err) == (0, "")
    lines = shown.out.splitlines()
    assert lines[0].startswith(
        "GPU memory of flux-embedding-lora, estimated from the sizes of the usual model of FLUX.1"
    )
    assert lines[1].endswith("GiB, does not fit into 12 GB")
    assert "denoiser 22.2, clip_l 0.2, t5 8.9, vae 0.2," in lines[2]
    at = next(number for number, line in enumerate(lines) if line.startswith("It fits into 12 GB with these keys"))
    assert lines[at + 1 :] == [
        "  [model]",
        '  weights = { denoiser = "nf4" }',
        "  offload = { t5 = 1 }",
        "nf4 needs bitsandbytes: pip install 'pivotune[bitsandbytes]'",
    ]
    shown = call("plan", "flux-embedding-lora", "--vram", "3")
    assert shown.code == 0
    assert shown.out.splitlines()[-1].startswith("It does not fit into 3 GB even with all of these (")


def test_what_fits_as_json(call) -> None:
    made = json.loads(call("plan", "quickstart", "--vram", "2", "--json").out)
    assert (made["fits"], made["model"], made["settings"]) == (True, "micro", [])
    assert made["stages"] == {"3": sum(made["parts"].values())}


def test_new_writes_a_recipe_that_fits(call, tmp_path: Path) -> None:
    target = tmp_path / "mine.toml"
    assert call("new", "sd1", "--vram", "2.5", "--out", target).code == 0
    text = target.read_text("utf-8")
    assert '# dtype = "bfloat16"            # half the memory' in text  # comments are kept
    lines = text.splitlines()
    at = lines.index('family = "sd1"')
    assert lines[at + 1 : at + 3] == ['dtype = "bfloat16"', "offload = { denoiser = 1 }"]
    assert "gradient_accumulation = 2       # effective batch size 4 with less memory" in lines
    (about,) = [line for line in lines if line.startswith("# GPU memory, estimated and not measured: ")]
    assert lines[lines.index(about) + 1] == "[model]"
    planned = call("plan", target, "--vram", "2.5")
    assert planned.out.splitlines()[1].endswith("fits into 2.5 GB")
    assert about.split("measured: ")[1].split(". ")[0] in planned.out


def test_keys_are_set_where_they_are_and_comments_stay() -> None:
    head = '[model]\nbase = "micro"  # (you)\n'
    stages = '\n[[stage]]\nkind = "inject"\n\n[[stage]]\nkind = "train"\n'
    text = f"{head}{stages}batch_size = 4  # why\n"
    changes = {("stage", 1, "batch_size"): "1", ("stage", 1, "gradient_accumulation"): "4", ("model", "dtype"): '"x"'}
    made = with_keys(text, changes)
    assert made == f'{head}dtype = "x"\n{stages}batch_size = 1  # why\ngradient_accumulation = 4\n'


def test_new_writes_nothing_that_cannot_fit(call, tmp_path: Path) -> None:
    target = tmp_path / "mine.toml"
    shown = call("new", "flux", "--vram", "2", "--out", target)
    assert (shown.code, target.exists(), shown.err.count("\n")) == (1, False, 1)
    assert "flux does not fit into 2 GB of GPU memory" in shown.err


def test_new_of_a_family_has_its_usual_model(call, tmp_path: Path) -> None:
    target = tmp_path / "mine.toml"
    assert call("new", "flux2-klein-9b", "--out", target).code == 0
    text = target.read_text("utf-8")
    assert 'base = "black-forest-labs/FLUX.2-klein-base-9B"    # (you)' in text
    assert '\nfamily = "flux2-klein-9b"\n' in text
    assert "unknown template 'flx'; did you mean 'flux'?" in call("new", "flx").err


def test_a_recipe_of_another_family_than_its_template_has_that_familys_encoders(call, tmp_path):
    target = tmp_path / "klein.toml"
    assert call("new", "flux2-klein-9b", "--out", target).code == 0
    text = target.read_text("utf-8")
    assert "qwen3_8b = " in text
    assert "qwen3_4b" not in text
    assert "has no text encoder" not in call("check", target).out


def test_a_memory_that_is_no_number_is_refused(call):
    refused = call("new", "flux", "--vram", "nan")
    assert refused.code == 2
    assert "nan is not a number of GB" in refused.err
