"""Several processes train one run: the same result as one, one writer, one end for all."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from projects import make_project, run_project
from run.killing import child, made_files
from run.kinds import FSDP
from run.launching import Launched, launched
from safetensors.torch import load_file

from pivotune.pipeline.data.dataset import FullBatch
from pivotune.pipeline.distributed import Processes
from pivotune.pipeline.errors import StageError
from pivotune.pipeline.launch import join_processes
from pivotune.pipeline.recipe.optimizers import OPTIMIZERS
from pivotune.pipeline.train import loop
from pivotune.pipeline.train.loss import mean_loss, part_loss

OFTEN = '[checkpoint]\nevery = "1 steps"\n'
ROUNDING = 1e-5  # relative; seen: losses 2e-7, norms of gradients 8e-7, all that is trained 2e-6
METHODS = {
    "embeddings": "preserve_norm = 'median'\nnoise = { offset = 0.1 }",
    "embeddings and LoRA": (
        "gradient_accumulation = 2\nlora = { rank = 2, learning_rate = 1e-2 }\n"
        "locality = { prompts = ['red', 'a ring', 'a photo'], weight = 0.5 }\n"
        "shard_optimizer_from = 1\nema = 0.9\nsave = { every = '2 steps' }\nwatch = { sample_every = '2 steps' }"
    ),
    "fine-tune": "finetune = { parts = ['denoiser', 'clip_l'], learning_rate = 1e-3, layers = 'attention' }",
}
SHARDED = (
    "ema = 0.9\nwatch = { sample_every = '2 steps' }\nsave = { every = '2 steps' }\n"
    "finetune = [{ parts = ['denoiser', 'clip_l'], learning_rate = 1e-3, layers = 'attention' }]"
)


def manifest_of(folder: Path) -> dict:
    return json.loads((folder / "manifest.json").read_text("utf-8"))


def metrics_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text("utf-8").splitlines()]


def trained(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of the run's plain exports."""
    files = sorted((folder / "exports").glob("*.safetensors")) + sorted((folder / "exports").glob("*_emb*/*.safet*"))
    return {f"{path.name}/{name}": tensor.float() for path in files for name, tensor in load_file(path).items()}


def assert_same_to_rounding(one: Path, other: Path) -> None:
    """The same but for sums taken in another order.

    A weight whose gradient is all rounding (the bias of an attention's keys) goes its own way under AdamW: so what is
    trained is compared as a whole, by its L2 norm, and each number by the 0.01 that a step may move it.
    """
    first, second = trained(one), trained(other)
    assert first.keys() == second.keys()
    apart = torch.cat([(second[name] - tensor).flatten() for name, tensor in first.items()])
    assert apart.norm() <= ROUNDING * torch.cat([tensor.flatten() for tensor in first.values()]).norm()
    assert apart.abs().max() <= 1e-2 * 1e-2
    for name in ("loss", "gradient_norm"):
        sides = [torch.tensor([row[name] for row in metrics_of(folder)]) for folder in (one, other)]
        torch.testing.assert_close(sides[0], sides[1], rtol=ROUNDING, atol=0.0)


def run_in(recipe: Path, out: Path, count: int = 2, **environment: str) -> Launched:
    return launched(out.parent, lambda rank: run_project(recipe, out), count, environment)


@pytest.mark.parametrize("count", [1, 2, 3, 7])
@pytest.mark.parametrize("sizes", [[5], [4, 4], [1, 1, 1], [3, 2]])
def test_every_image_of_a_step_is_in_one_process(sizes, count):
    shares = [Processes(count, index).shares(sizes) for index in range(count)]
    seen = [(part, place) for share in shares for part, cut in enumerate(share) for place in range(sizes[part])[cut]]
    assert sorted(seen) == [(part, place) for part, size in enumerate(sizes) for place in range(size)]
    counts = [sum(cut.stop - cut.start for cut in share) for share in shares]
    assert max(counts) - min(counts) <= 1


@pytest.mark.parametrize("prior", [[False] * 5, [False, True, True, False, True], [True] * 5])
def test_the_parts_of_a_loss_add_up_to_it(prior):
    losses, weight, marked = torch.rand(5), torch.rand(5), torch.tensor(prior)
    parts = [slice(0, 2), slice(2, 2), slice(2, 5)]
    added = sum(float(part_loss(losses[part], FullBatch(part, weight, marked), 0.3)) for part in parts)
    assert added == pytest.approx(float(mean_loss(losses, weight, marked, 0.3)), rel=1e-6)


@pytest.mark.parametrize(
    "method", ["embeddings", "embeddings and LoRA", pytest.param("fine-tune", marks=pytest.mark.slow)]
)
def test_two_processes_give_the_result_of_one(tmp_path, method):
    recipe = make_project(tmp_path, train=METHODS[method])
    run_project(recipe, tmp_path / "one")
    count = 3 if method == "embeddings" else 2  # three processes share batches of two and one: some have nothing to do
    ended = run_in(recipe, tmp_path / "many", count)
    assert ended.codes == [0] * count, ended.outputs
    assert_same_to_rounding(tmp_path / "one", tmp_path / "many")
    assert manifest_of(tmp_path / "many")["environment"]["processes"] == count
    files = [{path.relative_to(run) for path in run.rglob("*")} for run in (tmp_path / "one", tmp_path / "many")]
    assert files[0] == files[1]


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("more", ["", "gradient_accumulation = 2\n"])
def test_a_sharded_fine_tune_gives_the_result_of_one_process(tmp_path, more, count):
    """Three processes share batches of two images and of one: some have nothing to do, and yet must take part."""
    recipe = make_project(tmp_path, train=more + SHARDED)
    run_project(recipe, tmp_path / "one")
    ended = run_in(recipe, tmp_path / "many", count, **FSDP)
    assert ended.codes == [0] * count, ended.outputs
    assert_same_to_rounding(tmp_path / "one", tmp_path / "many")


@pytest.mark.slow
def test_both_text_encoders_of_sdxl_can_be_sharded(tmp_path):
    """Their prompts are hidden states from before the last layer, which gets no gradient: nothing decays it here."""
    table = "parts = ['denoiser', 'clip_l', 'clip_g'], learning_rate = 1e-3"
    train = f"finetune = {{ {table}, optimizer = {{ kind = 'adamw', weight_decay = 0.0 }} }}"
    recipe = make_project(tmp_path, "sdxl", train=train, export='model_dtype = "float32"')
    run_project(recipe, tmp_path / "one")
    ended = run_in(recipe, tmp_path / "many", 2, **FSDP)
    assert ended.codes == [0, 0], ended.outputs
    assert_same_to_rounding(tmp_path / "one", tmp_path / "many")


def stopped_by_one(monkeypatch, recipe: Path, out: Path, **environment: str) -> None:
    """A run that the second of two processes was asked to stop after its second step."""
    one_step = loop.one_step

    def asked(training, clock):
        if clock.step == 1 and training.processes.index == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return one_step(training, clock)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "one_step", asked)
        ended = run_in(recipe, out, **environment)
    assert ended.codes == [1, 1], ended.outputs
    assert "Stopped by a signal to another process after step 2 of 3" in ended.outputs[0]
    assert manifest_of(out)["status"] == "stopped"


def test_a_signal_to_one_process_stops_all_and_one_process_resumes(tmp_path, monkeypatch):
    recipe = make_project(tmp_path, train="shard_optimizer_from = 1\nema = 0.5")
    assert child(lambda: run_project(recipe, tmp_path / "whole")) == 0
    stopped_by_one(monkeypatch, recipe, tmp_path / "run")
    assert child(lambda: run_project(recipe, tmp_path / "run")) == 0
    assert_same_to_rounding(tmp_path / "whole", tmp_path / "run")


def test_one_process_resumes_a_fine_tune_sharded_over_two(tmp_path, monkeypatch):
    """In the second step, of one image, one of the two has nothing to do, and yet must take part."""
    recipe = make_project(tmp_path, train=SHARDED)
    assert child(lambda: run_project(recipe, tmp_path / "whole")) == 0
    stopped_by_one(monkeypatch, recipe, tmp_path / "run", **FSDP)
    assert "sharded: finetune.denoiser, finetune.clip_l" in str(manifest_of(tmp_path / "run")["stages"])
    assert child(lambda: run_project(recipe, tmp_path / "run")) == 0
    assert_same_to_rounding(tmp_path / "whole", tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize("kind", [name for name, row in OPTIMIZERS.items() if row.elementwise])
def test_two_processes_resume_a_fine_tune_of_one(tmp_path, monkeypatch, kind):
    table = f"{{ parts = ['denoiser'], layers = 'attention', learning_rate = 1e-3, optimizer = {{ kind = '{kind}' }} }}"
    recipe, one_step = make_project(tmp_path, train=f"finetune = {table}"), loop.one_step
    assert child(lambda: run_project(recipe, tmp_path / "whole")) == 0

    def stopped(training, clock):
        if clock.step == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return one_step(training, clock)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "one_step", stopped)
        assert child(lambda: run_project(recipe, tmp_path / "run")) == 1
    ended = run_in(recipe, tmp_path / "run", **FSDP)
    assert ended.codes == [0, 0], ended.outputs
    assert_same_to_rounding(tmp_path / "whole", tmp_path / "run")


@pytest.mark.slow
def test_the_same_number_of_processes_resumes_to_the_same_bytes(tmp_path, monkeypatch):
    recipe = make_project(tmp_path, train="lora = { rank = 2, learning_rate = 1e-2, dropout = 0.2 }")
    assert run_in(recipe, tmp_path / "whole").codes == [0, 0]
    stopped_by_one(monkeypatch, recipe, tmp_path / "run")
    assert run_in(recipe, tmp_path / "run").codes == [0, 0]
    assert made_files(tmp_path / "run") == made_files(tmp_path / "whole")


def test_a_failure_in_one_process_ends_all_and_the_main_one_reports_it(tmp_path, monkeypatch):
    recipe, batch_loss = make_project(tmp_path), loop.batch_loss

    def failing(training, batch, number, *, grad_text):
        if training.processes.index == 1:
            raise StageError("the image has vanished")
        return batch_loss(training, batch, number, grad_text=grad_text)

    monkeypatch.setattr(loop, "batch_loss", failing)
    ended = run_in(recipe, tmp_path / "run")
    assert ended.codes == [1, 1]
    assert "process 1 of 2 has failed: StageError: the image has vanished" in ended.outputs[0]
    assert "the image has vanished" in manifest_of(tmp_path / "run")["error"]


def test_a_killed_process_ends_the_others_and_nothing_is_lost(tmp_path, monkeypatch):
    recipe, one_step = make_project(tmp_path, more=OFTEN), loop.one_step

    def killed(training, clock):
        if clock.step == 2 and training.processes.index == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return one_step(training, clock)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "one_step", killed)
        ended = run_in(recipe, tmp_path / "run")
    assert ended.codes == [1, -signal.SIGKILL]
    assert "another process has ended" in ended.outputs[0]
    assert run_in(recipe, tmp_path / "run").codes == [0, 0]
    assert len(manifest_of(tmp_path / "run")["resumed"]) == 1


def test_a_failure_of_the_main_process_to_export_ends_all(tmp_path):
    recipe = make_project(tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine").write_text("a file of mine", "utf-8")
    ended = run_in(recipe, tmp_path / "run")
    assert ended.codes == [1, 1]
    assert "contains files, but no run" in ended.outputs[0]
    assert "stops with the main process" in ended.outputs[1]
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["mine"]


def test_an_overflow_in_one_process_halves_the_scale_of_all(tmp_path, monkeypatch):
    recipe, add_up, calls = make_project(tmp_path, model='dtype = "float16"'), loop.sum_gradients, []

    def overflowing(leaves, processes):
        if processes.index == 1 and not calls:
            for leaf in leaves:
                leaf.grad *= float("inf")
        calls.append(processes.index)
        add_up(leaves, processes)

    monkeypatch.setattr(loop, "sum_gradients", overflowing)
    ended = run_in(recipe, tmp_path / "run")
    assert ended.codes == [0, 0], ended.outputs
    assert [row["loss_scale"] for row in metrics_of(tmp_path / "run")] == [64, 64, 64]


def test_processes_with_different_values_are_detected(tmp_path, monkeypatch):
    recipe, one_step = make_project(tmp_path), loop.one_step

    def drifting(training, clock):
        row = one_step(training, clock)
        if training.processes.index == 1:
            next(iter(training.injection.rows.values())).values[0, 0] += 1e-6
        return row

    monkeypatch.setattr(loop, "one_step", drifting)
    ended = run_in(recipe, tmp_path / "run")
    assert ended.codes == [1, 1]
    assert "the embeddings for clip_l: not the same in process 1" in ended.outputs[0]


def test_a_sharded_fine_tune_refuses_an_optimizer_that_needs_whole_weights(tmp_path):
    table = "{ parts = ['denoiser'], optimizer = { kind = 'prodigy' } }"
    ended = run_in(make_project(tmp_path, train=f"finetune = {table}"), tmp_path / "run", **FSDP)
    assert ended.codes == [1, 1]
    assert all("the optimizer prodigy cannot be used with FSDP" in output for output in ended.outputs), ended.outputs


def test_unsupported_launcher_settings_are_refused(monkeypatch):
    for variable, expected in (
        (
            "ACCELERATE_USE_DEEPSPEED",
            "DeepSpeed is not supported; .* use FSDP2 .accelerate launch --use_fsdp",
        ),
        ("ACCELERATE_USE_MEGATRON_LM", "Megatron-LM is not supported"),
        ("ACCELERATE_USE_FSDP", "FSDP 1"),
    ):
        monkeypatch.setenv(variable, "true")
        with pytest.raises(StageError, match=expected):
            join_processes("auto")
        monkeypatch.delenv(variable)
    assert join_processes("cuda:1").count == 1
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(StageError, match=r"device = 'cuda:1': with several processes the launcher assigns devices"):
        join_processes("cuda:1")


FSDP_ASKED = ["--use_fsdp", "--fsdp_version", "2", "--fsdp_auto_wrap_policy", "TRANSFORMER_BASED_WRAP"]


@pytest.mark.slow
@pytest.mark.parametrize("how", [["--multi_gpu"], FSDP_ASKED])
def test_accelerate_launches_a_run(tmp_path, how):
    recipe = make_project(tmp_path, train=SHARDED)
    launch = [sys.executable, "-m", "accelerate.commands.launch", *how, "--num_processes", "2"]
    launch += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    done = subprocess.run(
        [*launch, "-m", "pivotune", "run", str(recipe), "--out", str(tmp_path / "run")],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    manifest = manifest_of(tmp_path / "run")
    assert manifest["environment"]["processes"] == 2
    assert ("sharded: finetune.denoiser, finetune.clip_l" in str(manifest["stages"])) == (how != ["--multi_gpu"])
    assert done.stdout.count("Report: ") == 1
