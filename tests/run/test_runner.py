"""Whole runs on tiny models: what was asked is there, and nothing else has changed."""

import json
import runpy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from jsonschema import Draft202012Validator
from projects import before_eject, make_project, run_project

from pivotune import schemas
from pivotune.converters.safetensors_file import read as read_safetensors
from pivotune.pipeline.checks.recipe import check_recipe
from pivotune.pipeline.errors import StageError
from pivotune.pipeline.models import unets
from pivotune.pipeline.models.denoisers import DENOISERS
from pivotune.pipeline.models.load import load_model
from pivotune.pipeline.recipe.load import load_recipe
from pivotune.pipeline.run import runner
from pivotune.pipeline.run.manifest import data_facts
from pivotune.pipeline.run.samples import inject_files
from pivotune.pipeline.run.signals import Stopped
from pivotune.pipeline.tensors import from_raw
from pivotune.pipeline.train import loop
from pivotune.pipeline.train.lora import ADAPTER
from pivotune.pipeline.train.weights import WeightTrainer

FAMILIES = ["sd1", "sdxl"]
PIPES = {"sd1": StableDiffusionPipeline, "sdxl": StableDiffusionXLPipeline}


def manifest_of(folder: Path) -> dict:
    return json.loads((folder / "manifest.json").read_text("utf-8"))


def vectors_of(folder: Path, embedding: str = "cat") -> dict[str, torch.Tensor]:
    tensors, _ = read_safetensors(folder / "exports" / "tiny_embeddings" / f"{embedding}.safetensors")
    return {key: from_raw(raw) for key, raw in tensors.items()}


@pytest.mark.parametrize("family", FAMILIES)
def test_embeddings_alone_load_in_diffusers_as_they_were_trained(tmp_path, family):
    recipe = make_project(tmp_path, family)
    result = run_project(recipe, tmp_path / "run")
    exports = tmp_path / "run" / "exports"
    model = load_model(load_recipe(recipe).model, torch.device("cpu"))
    encode = DENOISERS[model.family.denoiser_kind].encode
    prompt = ["a photo of <cat>, small"]
    before = encode(model.pipe, prompt)
    injection = inject_files(model, {"<cat>": exports / "tiny_embeddings" / "cat.safetensors"})
    injection.activate(prompt)
    ours = encode(model.pipe, prompt)
    injection.eject()
    pipe = PIPES[family].from_pretrained(tmp_path / "model")
    for encoder, name in zip(model.encoders, ("cat", "cat_2"), strict=False):
        pipe.load_textual_inversion(
            exports / "diffusers" / f"{name}.safetensors", text_encoder=getattr(pipe, encoder.module_name),
            tokenizer=getattr(pipe, encoder.tokenizer_name),
        )  # fmt: skip
    theirs = encode(pipe, prompt)
    assert torch.equal(ours.states, theirs.states)
    assert not torch.allclose(ours.states, before.states, atol=1e-3)
    assert result.report.is_file()
    assert "<cat>" in result.summary


@pytest.mark.parametrize("family", FAMILIES)
def test_the_exported_lora_is_the_trained_one(tmp_path, family, monkeypatch):
    trained = {}

    def look(state, model):
        if "answer" not in trained:
            trained["answer"] = answer(model)
            trained["parameters"] = [p for n, p in model.denoiser.named_parameters() if ADAPTER in n]

    def answer(model):
        draw = torch.Generator().manual_seed(0)
        text = DENOISERS[model.family.denoiser_kind].encode(model.pipe, ["a red ring"])
        noisy = torch.randn(1, 4, 8, 8, generator=draw)
        return DENOISERS[model.family.denoiser_kind].predict(model.pipe, noisy, torch.tensor([500]), text).detach()

    before_eject(monkeypatch, look)
    recipe = make_project(tmp_path, family, train="lora = { rank = 2, alpha = 1, learning_rate = 0.05 }")
    run_project(recipe, tmp_path / "run")
    fresh = load_model(load_recipe(recipe).model, torch.device("cpu"))
    by_base_model = answer(fresh)
    fresh.pipe.load_lora_weights(tmp_path / "run" / "exports", weight_name="tiny.safetensors")
    assert trained["parameters"]
    torch.testing.assert_close(answer(fresh), trained["answer"], rtol=1e-5, atol=1e-6)
    assert (answer(fresh) - by_base_model).abs().max() > 1e-3


def test_a_bundle_is_made_where_a_program_reads_one(tmp_path):
    recipe = make_project(
        tmp_path, "sdxl", train="lora = { rank = 2 }", export='targets = ["a1111", "forge", "comfyui", "onetrainer"]'
    )
    run_project(recipe, tmp_path / "run")
    exports = tmp_path / "run" / "exports"
    bundle, metadata = read_safetensors(exports / "a1111" / "tiny.safetensors")
    plain, _ = read_safetensors(exports / "tiny.safetensors")
    embeddings = {name for name in bundle if name.startswith("bundle_emb.")}
    assert embeddings == {"bundle_emb.<cat>.clip_l", "bundle_emb.<cat>.clip_g"}
    assert bundle.keys() - embeddings == plain.keys()
    assert metadata["ss_base_model_version"].startswith("sdxl")
    assert (exports / "forge" / "cat.safetensors").is_file()
    assert "embedding:cat" in (exports / "comfyui" / "HOW-TO.txt").read_text("utf-8")
    assert not any("bundle_emb" in name for name in plain)


def test_bundling_can_be_turned_off(tmp_path):
    recipe = make_project(tmp_path, train="lora = { rank = 2 }", export='targets = ["a1111"]\nbundle = false')
    run_project(recipe, tmp_path / "run")
    assert [p.name for p in (tmp_path / "run/exports/a1111").glob("*.safetensors")] == ["cat.safetensors"]


@pytest.mark.parametrize("train", ["", "lora = { rank = 2, dropout = 0.1 }\nflip = true\ncaption_dropout = 0.2"])
def test_the_same_recipe_twice_gives_the_same_bytes(tmp_path, train):
    recipe = make_project(tmp_path, "sdxl", train=train)
    for name in ("one", "two"):
        run_project(recipe, tmp_path / name)
    files = sorted(p.relative_to(tmp_path / "one") for p in (tmp_path / "one" / "exports").rglob("*") if p.is_file())
    assert len(files) >= 6
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes(), file
    hashes = [{row["path"]: row["sha256"] for row in manifest_of(tmp_path / n)["artefacts"]} for n in ("one", "two")]
    assert hashes[0] == hashes[1]


def test_another_seed_gives_other_bytes(tmp_path):
    recipe = make_project(tmp_path)
    run_project(load_recipe(recipe), tmp_path / "one")
    run_project(load_recipe(recipe, ["seed=4"]), tmp_path / "two")
    assert not torch.equal(vectors_of(tmp_path / "one")["emb_params"], vectors_of(tmp_path / "two")["emb_params"])


@pytest.mark.parametrize("lora", [False, True])
def test_the_manifest_fits_its_schema_and_proves_the_run(tmp_path, lora):
    recipe = make_project(tmp_path, "sdxl", train="lora = { rank = 2 }" if lora else "")
    run_project(recipe, tmp_path / "run")
    manifest = manifest_of(tmp_path / "run")
    assert [e.message for e in Draft202012Validator(schemas.schema("manifest.json")).iter_errors(manifest)] == []
    assert manifest["status"] == "finished"
    assert manifest["proofs"] == {
        "vocabulary_unchanged": {"clip_l": True, "clip_g": True},
        "gradient_reached": {"<cat>": True},
        "ejected_clean": True,
        "exports_verified": 5 + 2 * lora,
        "exports_declared": 5 + 2 * lora,
        "embeddings": {"declared": 1, "exported": 1, "verified": 1},
    }
    [embedding] = manifest["embeddings"]
    assert all(way > 0 for encoder in embedding["encoders"].values() for way in encoder["distance"])
    assert len(manifest["images"]) == 2
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text("utf-8").splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert set(rows[0]["embeddings"]["<cat>"]) == {"clip_l", "clip_g"}


def test_an_earlier_layer_of_the_text_encoder_is_read_in_training_and_images(tmp_path, monkeypatch):
    recipe, seen = load_recipe(make_project(tmp_path, model="clip_skip = 2")), []
    encode = unets.UNet.encode

    def spied(pipe, captions):
        text = encode(pipe, captions)
        if "<cat>" not in captions[0]:
            return text
        ids = pipe.tokenizer(captions, padding="max_length", max_length=77, return_tensors="pt").input_ids
        parts, hidden = dict(pipe.text_encoder.named_modules()), []
        layer = next(part for name, part in parts.items() if name.endswith("encoder.layers.0"))
        with layer.register_forward_hook(lambda layer, inputs, output: hidden.append(output)):
            pipe.text_encoder(ids)
        norm = next(part for name, part in parts.items() if name.endswith("final_layer_norm"))
        assert torch.equal(text.states, norm(hidden[0]))  # of two layers
        seen.append(captions)
        return text

    with monkeypatch.context() as patch:
        patch.setattr(unets.UNet, "encode", staticmethod(spied))
        folder = run_project(recipe, tmp_path / "run").folder
    assert len(seen) == 3
    plain = run_project(load_recipe(recipe.path, ["model.clip_skip=1"]), tmp_path / "plain").folder
    for name in ("before-000-0.png", "after-000-0.png"):
        assert (folder / "images" / name).read_bytes() != (plain / "images" / name).read_bytes()
    assert "Clip skip 2" in (folder / "exports/a1111/HOW-TO.txt").read_text("utf-8")
    assert "Clip skip" not in (plain / "exports/a1111/HOW-TO.txt").read_text("utf-8")
    _, metadata = read_safetensors(folder / "exports/tiny_embeddings/cat.safetensors")
    assert metadata["pivotune.clip_skip"] == "2"
    pipe = runpy.run_path(str(folder / "exports/diffusers/load.py"))["pipe"]
    ours, plainly = (load_model(replace(recipe.model, clip_skip=skip), torch.device("cpu")).pipe for skip in (2, 1))
    answers = [encode(one, ["a red ring"]).states for one in (ours, pipe, plainly)]
    assert torch.equal(answers[0], answers[1])
    assert not torch.allclose(answers[0], answers[2])


def test_a_layer_that_a_model_does_not_have_is_refused(tmp_path):
    sdxl = load_recipe(make_project(tmp_path, "sdxl", model="clip_skip = 2"))
    (message,) = [problem.text for problem in check_recipe(sdxl.path).problems if problem.severity == "error"]
    assert message.startswith("clip_skip is not supported for Stable Diffusion XL")
    with pytest.raises(StageError, match=r"model.clip_skip = 2: not supported for Stable Diffusion XL"):
        run_project(sdxl, tmp_path / "run")
    with pytest.raises(StageError, match=r"model.clip_skip = 3: the text encoder has 2 layers"):
        load_model(replace(sdxl.model, base="micro", family=None, clip_skip=3), torch.device("cpu"))


def test_the_lines_for_diffusers_run(tmp_path):
    recipe = make_project(tmp_path, "sdxl", train="lora = { rank = 2 }")
    run_project(recipe, tmp_path / "run")
    script = tmp_path / "run" / "exports" / "diffusers" / "load.py"
    runpy.run_path(str(script))
    assert (script.parent / "try.png").is_file()


MORE = """
[[concept]]
images = "images"
captions = ["an image of <dog>"]
[[embedding]]
placeholder = "<dog>"
initial_text = "blue"
"""


def test_every_embedding_has_a_file_of_its_own_with_its_own_vectors(tmp_path, monkeypatch):
    """Not all vectors of all embeddings in one tensor, which programs load as one embedding."""
    trained = {}

    def look(state, model):
        if state.injection is not None:
            rows = state.injection.rows["clip_l"]
            trained.update({embedding: rows.of(embedding).clone() for embedding in ("<cat>", "<dog>")})

    before_eject(monkeypatch, look)
    run_project(make_project(tmp_path, more=MORE, export='targets = ["a1111", "diffusers"]'), tmp_path / "run")
    assert [len(trained[embedding]) for embedding in ("<cat>", "<dog>")] == [2, 1]
    for one in manifest_of(tmp_path / "run")["embeddings"]:
        _, metadata = read_safetensors(tmp_path / f"run/exports/a1111/{one['placeholder'][1:-1]}.safetensors")
        ways = [f"{way:.4g}" for way in one["encoders"]["clip_l"]["distance"]]
        assert metadata["pivotune.distance"] == " ".join(["clip_l", *ways])
    for folder, keys in (("tiny_embeddings", None), ("a1111", None), ("diffusers", ("<cat>", "<dog>"))):
        for at, embedding in enumerate(("<cat>", "<dog>")):
            tensors, _ = read_safetensors(tmp_path / "run/exports" / folder / f"{embedding[1:-1]}.safetensors")
            assert list(tensors) == [keys[at] if keys else "emb_params"]
            assert torch.equal(from_raw(*tensors.values()), trained[embedding])


@pytest.mark.parametrize("preserve", ["", 'preserve_norm = "median"'])
def test_an_embedding_that_is_not_in_the_batch_does_not_change(tmp_path, monkeypatch, preserve):
    recipe = make_project(
        tmp_path, more=MORE, train=f"optimizer = {{ kind = 'adamw', weight_decay = 0.1 }}\n{preserve}",
    )  # fmt: skip
    loaded = load_recipe(recipe, ["train.steps=12", "train.batch_size=1"])
    one_step, seen = loop.one_step, []

    def checked(training, clock):
        rows = training.injection.rows["clip_l"]
        before = {embedding: rows.of(embedding).clone() for embedding in rows.spans}
        row = one_step(training, clock)
        for embedding in rows.spans:
            assert torch.equal(rows.of(embedding), before[embedding]) == (embedding not in row["active"]), (
                embedding,
                row["active"],
            )
        seen.append(tuple(row["active"]))
        return row

    monkeypatch.setattr(loop, "one_step", checked)
    run_project(loaded, tmp_path / "run")
    assert {("<cat>",), ("<dog>",)} <= set(seen)


def test_an_embedding_with_train_false_is_used_and_does_not_change(tmp_path):
    recipe = make_project(tmp_path, more=MORE + "train = false", stages='[[stage]]\nkind = "rescale"')
    run_project(recipe, tmp_path / "run")
    cat, dog = manifest_of(tmp_path / "run")["embeddings"]
    assert dog["encoders"]["clip_l"]["distance"] == [0.0]
    assert dog["encoders"]["clip_l"]["norm_after"] == dog["encoders"]["clip_l"]["norm_before"]
    assert min(cat["encoders"]["clip_l"]["distance"]) > 0


@pytest.mark.parametrize("optimizer", ["adamw", "adamw-schedule-free"])
def test_a_learning_rate_of_zero_for_an_encoder_keeps_its_vectors(tmp_path, optimizer):
    recipe = make_project(
        tmp_path, "sdxl", embedding="learning_rate = { clip_l = 1e-2, clip_g = 0 }",
        train=f'preserve_norm = "median"\noptimizer.kind = "{optimizer}"',
    )  # fmt: skip
    run_project(recipe, tmp_path / "run")
    [embedding] = manifest_of(tmp_path / "run")["embeddings"]
    assert embedding["encoders"]["clip_g"]["distance"] == [0.0, 0.0]
    assert min(embedding["encoders"]["clip_l"]["distance"]) > 0


def test_an_embedding_stops_after_its_steps(tmp_path):
    recipe = make_project(tmp_path, embedding='stop_after = "1 steps"')
    run_project(recipe, tmp_path / "run")
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text("utf-8").splitlines()]
    moved = [row["embeddings"]["<cat>"]["clip_l"]["distance"] for row in rows]
    assert moved[0] == moved[1] == moved[2]
    assert min(moved[0]) > 0
    assert manifest_of(tmp_path / "run")["embeddings"][0]["stopped_at"] == 1


def test_a_second_train_stage_tunes_the_model_with_frozen_embeddings(tmp_path):
    second = '[[stage]]\nkind = "train"\nsteps = 2\nembeddings = false\nlora = { rank = 2, learning_rate = 0.01 }'
    recipe = make_project(tmp_path, stages=second)
    run_project(recipe, tmp_path / "run")
    run_project(make_project(tmp_path / "alone"), tmp_path / "alone" / "run")
    both, first = (vectors_of(folder)["emb_params"] for folder in (tmp_path / "run", tmp_path / "alone" / "run"))
    assert torch.equal(both, first)
    lora, _ = read_safetensors(tmp_path / "run" / "exports" / "tiny.safetensors")
    ups = [from_raw(raw) for name, raw in lora.items() if name.endswith("lora_up.weight")]
    assert ups
    assert all(up.abs().max() > 0 for up in ups)


def test_a_lora_is_frozen_in_a_stage_of_embeddings_and_trained_afterwards(tmp_path, monkeypatch):
    lora = "lora = { rank = 2, learning_rate = 0.01 }"
    after = '[[stage]]\nkind = "train"\nsteps = 2\n'
    recipe = make_project(tmp_path, train=lora, stages=f"{after}{after}embeddings = false\n{lora}")
    one_step, seen = loop.one_step, []

    def checked(training, clock):
        parameters = [p for name, p in training.model.denoiser.named_parameters() if ADAPTER in name]
        assert parameters
        assert all(parameter.grad is None for parameter in parameters)
        seen.append(all(parameter.requires_grad for parameter in parameters))
        before = [parameter.clone() for parameter in parameters]
        row = one_step(training, clock)
        same = all(torch.equal(one, two) for one, two in zip(before, parameters, strict=True))
        assert same == ("lora.denoiser" not in {trainable.name for trainable in training.trainables})
        return row

    monkeypatch.setattr(loop, "one_step", checked)
    run_project(recipe, tmp_path / "run")
    assert seen == [True] * 3 + [False] * 2 + [True] * 2


def test_a_lora_on_other_layers_than_the_stage_before_is_an_error(tmp_path):
    lora = 'lora = { rank = 2, targets = ["to_q", "to_k"] }'
    after = f'[[stage]]\nkind = "train"\nsteps = 1\n{lora.replace(", " + chr(34) + "to_k" + chr(34), "")}'
    with pytest.raises(StageError, match="is on other layers"):
        run_project(make_project(tmp_path, train=lora, stages=after), tmp_path / "run")


@pytest.mark.parametrize(("rule", "check"), [('"median"', "median"), ('"mean"', "mean"), ("0.3", 0.3)])
def test_rescale_sets_norms_by_each_encoders_own_statistics(tmp_path, rule, check):
    recipe = make_project(tmp_path, "sdxl", stages=f'[[stage]]\nkind = "rescale"\nto = {rule}')
    run_project(recipe, tmp_path / "run")
    manifest = manifest_of(tmp_path / "run")
    for key, encoder in manifest["embeddings"][0]["encoders"].items():
        goal = check if isinstance(check, float) else manifest["model"]["encoders"][key]["norm"][check]
        assert encoder["norm_after"] == pytest.approx([goal, goal], rel=1e-5)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_exports_in_half_precision_contain_the_rounded_vectors(tmp_path, dtype):
    recipe = make_project(tmp_path, export=f'dtype = "{dtype}"')
    run_project(recipe, tmp_path / "run")
    run_project(load_recipe(recipe, ["export.dtype='float32'"]), tmp_path / "full")
    half, full = vectors_of(tmp_path / "run")["emb_params"], vectors_of(tmp_path / "full")["emb_params"]
    assert half.dtype == getattr(torch, dtype)
    assert torch.equal(half, full.to(half.dtype))


def test_a_frozen_model_in_bfloat16_trains_float32_embeddings(tmp_path):
    recipe = make_project(tmp_path, "sdxl", model='dtype = "bfloat16"', train="lora = { rank = 2 }")
    run_project(recipe, tmp_path / "run")
    vectors = vectors_of(tmp_path / "run")
    assert {tensor.dtype for tensor in vectors.values()} == {torch.float32}
    assert not torch.equal(vectors["clip_l"], vectors["clip_l"].bfloat16().float())


# --- what must fail ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_vectors(tmp_path, monkeypatch, bad):
    recipe = make_project(tmp_path)
    good = run_project(load_recipe(recipe, ["train.steps=2", "train.warmup_steps=0"]), tmp_path / "good")
    true_loss, calls = loop.mean_loss, []

    def loss(*arguments):
        calls.append(1)
        return true_loss(*arguments) * (bad if len(calls) == 3 else 1.0)

    monkeypatch.setattr(loop, "mean_loss", loss)
    with pytest.raises(StageError, match=r"stage 3 \(train\): the loss at step 3 is .*; a smaller learning_rate may"):
        run_project(recipe, tmp_path / "run")
    kept, _ = read_safetensors(tmp_path / "run" / "last-good" / "tiny_embeddings" / "cat.safetensors")
    assert torch.equal(from_raw(kept["emb_params"]), vectors_of(good.folder)["emb_params"])
    manifest = manifest_of(tmp_path / "run")
    assert manifest["status"] == "failed"
    assert "not a finite number" in manifest["error"]
    assert not (tmp_path / "run" / "exports").exists()
    assert "not a finite number" in (tmp_path / "run" / "report.html").read_text("utf-8")


@pytest.mark.parametrize("when", ["in the second stage", "between the stages"])
def test_ctrl_c_keeps_embeddings_and_lora(tmp_path, monkeypatch, when):
    second = '[[stage]]\nkind = "train"\nsteps = 5\nembeddings = false\nlora = { rank = 2, learning_rate = 0.01 }'
    recipe = make_project(tmp_path, stages=second)
    one_step, steps = loop.one_step, []

    def interrupted(training, clock):
        tunes = training.embeddings is None
        steps.append(tunes)
        if tunes and (when == "between the stages" or sum(steps) == 3):
            raise KeyboardInterrupt
        return one_step(training, clock)

    monkeypatch.setattr(loop, "one_step", interrupted)
    with pytest.raises(Stopped, match="the same command resumes"):
        run_project(recipe, tmp_path / "run")
    kept, _ = read_safetensors(tmp_path / "run" / "last-good" / "tiny_embeddings" / "cat.safetensors")
    monkeypatch.setattr(loop, "one_step", one_step)
    whole = run_project(load_recipe(recipe, ["stage.4.steps=2"]), tmp_path / "whole").folder
    assert torch.equal(from_raw(kept["emb_params"]), vectors_of(whole)["emb_params"])
    lora, _ = read_safetensors(tmp_path / "run" / "last-good" / "tiny.safetensors")
    if when == "in the second stage":
        meant, _ = read_safetensors(whole / "exports" / "tiny.safetensors")
        assert lora.keys() == meant.keys()
        assert all(torch.equal(from_raw(lora[name]), from_raw(raw)) for name, raw in meant.items())
    manifest = manifest_of(tmp_path / "run")
    assert manifest["status"] == "stopped"
    assert manifest["error"].startswith("Stopped at once; the same command resumes")
    assert [e.message for e in Draft202012Validator(schemas.schema("manifest.json")).iter_errors(manifest)] == []
    page = (tmp_path / "run" / "report.html").read_text("utf-8")
    assert "This run was stopped" in page
    assert manifest["error"] in page
    assert "This run failed" not in page


def test_an_unavailable_model_leaves_no_run_folder(tmp_path):
    recipe = load_recipe(make_project(tmp_path), [f"model.base='{tmp_path}/nowhere'"])
    with pytest.raises(StageError, match="nowhere"):
        run_project(recipe, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_captions_truncated_before_the_placeholder_are_an_error(tmp_path):
    recipe = make_project(tmp_path, captions="red " * 80 + "<cat>")
    with pytest.raises(StageError, match="all captions of <cat> are truncated before the embedding"):
        run_project(recipe, tmp_path / "run")
    with pytest.raises(StageError, match="vector 1, 2 of '<cat>' in clip_l: all its captions are truncated before it"):
        run_project(recipe, tmp_path / "run", force=True)


@pytest.mark.parametrize("truncated", [(0, 1), (0, 2), (1, 2)])
def test_an_embedding_that_is_truncated_in_the_first_captions_is_trained_by_later_ones(tmp_path, truncated):
    path = make_project(tmp_path)
    for number in truncated:
        (tmp_path / f"images/{number}.txt").write_text("red " * 80 + "<cat>", "utf-8")
    recipe = load_recipe(path, ["train.batch_size=1"])  # three steps of an image each
    proofs = manifest_of(run_project(recipe, tmp_path / "run").folder)["proofs"]
    assert proofs["gradient_reached"] == {"<cat>": True}


def test_an_embedding_of_which_only_truncated_captions_were_sampled_is_an_error(tmp_path):
    path, ends = make_project(tmp_path), []
    for number in range(3):
        for other in range(3):
            text = "red " * 80 * (other != number) + "<cat>"
            (tmp_path / f"images/{other}.txt").write_text(text, "utf-8")
        recipe = load_recipe(path, ["train.batch_size=1", "train.steps=1"])
        try:
            run_project(recipe, tmp_path / f"run-{number}")
            ends.append("finished")
        except StageError as error:
            assert "'<cat>' was never sampled in this stage (captions that are truncated" in str(error)  # noqa: PT017
            ends.append("failed")
    assert sorted(ends) == ["failed", "failed", "finished"]


def test_a_text_encoder_that_the_denoiser_ignores_is_an_error(tmp_path, monkeypatch):
    from pivotune.pipeline.models import denoisers, unets

    encode = unets.UNetXL.encode

    def deaf(pipe, captions):
        text = encode(pipe, captions)
        width = pipe.text_encoder.config.hidden_size  # the first encoder's states come first
        return denoisers.Text(torch.cat([text.states[..., :width].detach(), text.states[..., width:]], -1), text.pooled)

    monkeypatch.setattr(denoisers.DENOISERS["unet_xl"], "encode", deaf, raising=False)
    with pytest.raises(StageError, match="vector 1, 2 of '<cat>' in clip_l: the model does not use this encoder"):
        run_project(make_project(tmp_path, "sdxl"), tmp_path / "run")


def test_a_full_device_names_what_needs_less_memory(tmp_path, monkeypatch):
    def full(training, clock):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(loop, "one_step", full)
    with pytest.raises(StageError, match=r"memory.*; try a smaller batch_size"):
        run_project(make_project(tmp_path), tmp_path / "run")
    assert (tmp_path / "run" / "last-good" / "tiny_embeddings" / "cat.safetensors").is_file()


def test_a_device_too_small_for_the_model_names_what_to_do(tmp_path, monkeypatch):
    def full(spec, device):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(runner, "load_model", full)
    with pytest.raises(StageError, match=r"memory.* model\.dtype"):
        run_project(make_project(tmp_path), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_embedding_in_no_batch_is_an_error_that_keeps_the_others(tmp_path):
    recipe = load_recipe(make_project(tmp_path, more=MORE), ["train.steps=1", "train.batch_size=1"])
    with pytest.raises(StageError, match=r"<(cat|dog)>' was never sampled"):
        run_project(recipe, tmp_path / "run")
    kept = {path.name for path in (tmp_path / "run" / "last-good" / "tiny_embeddings").iterdir()}
    assert kept == {"cat.safetensors", "dog.safetensors"}


def test_a_lora_gradient_that_is_not_finite_leaves_the_embeddings_unchanged(tmp_path, monkeypatch):
    monkeypatch.setattr(WeightTrainer, "gradient_norm", lambda trainer, scale: float("nan"))
    with pytest.raises(StageError, match=r"gradient of lora.denoiser at step 1 is nan, not a finite number"):
        run_project(make_project(tmp_path, train="lora = { rank = 2 }"), tmp_path / "run")
    rows = (tmp_path / "run" / "metrics.jsonl").read_text("utf-8")
    kept, _ = read_safetensors(tmp_path / "run" / "last-good" / "tiny_embeddings" / "cat.safetensors")
    model = load_model(load_recipe(tmp_path / "recipe.toml").model, torch.device("cpu"))
    [encoder] = model.encoders
    ids = encoder.tokenizer("red ring", add_special_tokens=False).input_ids
    assert rows == ""
    assert torch.equal(from_raw(kept["emb_params"]), encoder.table[ids])


def test_a_changed_vocabulary_fails_the_run(tmp_path, monkeypatch):
    recipe = make_project(tmp_path)
    one_step = loop.one_step

    def meddling(training, clock):
        training.model.encoders[0].table[5, 0] += 1e-6
        return one_step(training, clock)

    monkeypatch.setattr(loop, "one_step", meddling)
    with pytest.raises(StageError, match="vocabulary of clip_l is not bit for bit"):
        run_project(recipe, tmp_path / "run")


def test_embeddings_that_stay_in_the_model_fail_the_run(tmp_path, monkeypatch):
    from pivotune.pipeline.embeddings.injection import Injection

    monkeypatch.setattr(Injection, "eject", lambda self: None)
    with pytest.raises(StageError, match="was not restored"):
        run_project(make_project(tmp_path), tmp_path / "run")


def test_a_folder_with_files_is_never_overwritten(tmp_path):
    recipe = make_project(tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "precious.txt").write_text("mine", "utf-8")
    with pytest.raises(StageError, match="contains files, but no run"):
        run_project(recipe, tmp_path / "run")
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["precious.txt"]


def test_an_image_that_is_moved_during_training_fails_no_run(tmp_path, monkeypatch):
    one_step = loop.one_step

    def moved(training, clock):
        (tmp_path / "images/1.png").unlink(missing_ok=True)
        return one_step(training, clock)

    monkeypatch.setattr(loop, "one_step", moved)
    folder = run_project(make_project(tmp_path), tmp_path / "run").folder
    manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
    assert manifest["embeddings"][0]["images"] == [f"images/{number}.png" for number in range(3)]


def test_a_table_of_captions_is_in_the_manifest_by_its_hash(tmp_path):
    (tmp_path / "embeddings.jsonl").write_text('{"file_name": "a.png", "text": "a <cat>"}', "utf-8")
    (tmp_path / "a.png").write_bytes(b"")
    path = tmp_path / "recipe.toml"
    path.write_text(
        'name = "x"\nmodel.base = "micro"\nembedding = [{ placeholder = "<cat>" }]\nstage = [{ kind = "tokenize" }]\n'
        'concept = [{ images = ".", captions = "embeddings.jsonl" }]\n'
    )
    facts = data_facts(load_recipe(path))
    assert set(facts["files"]) == {"a.png", "embeddings.jsonl"}


def test_nothing_to_train_is_an_error(tmp_path):
    recipe = make_project(tmp_path, train="embeddings = false")
    with pytest.raises(StageError, match="nothing to train"):
        run_project(recipe, tmp_path / "run")


def test_lora_targets_that_fit_no_layer_are_an_error(tmp_path):
    recipe = make_project(tmp_path, train='lora = { targets = ["no_such_layer"] }')
    with pytest.raises(StageError, match=r"lora\.targets"):
        run_project(recipe, tmp_path / "run")
