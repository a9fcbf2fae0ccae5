"""Diffusers folders are loaded bit for bit and frozen, or are an error of one line."""

import json
import shutil

import pytest
import torch
from models.folders import CPU, WEIGHTS, assert_same_weights, edit_json, load, rewrite, spec_of

from pivotune.pipeline.errors import StageError
from pivotune.pipeline.models.load import prepare


def prefixed(state):
    return {f"text_model.{name.removeprefix('text_model.')}": tensor for name, tensor in state.items()}


def flat(state):
    return {name.removeprefix("text_model."): tensor for name, tensor in state.items()}


def test_a_folder_is_loaded_bit_for_bit_frozen_and_in_evaluation_mode(folder, family, original):
    model = load(folder, family)
    assert_same_weights(model.pipe, original)
    assert (model.path, model.family.name, model.dtype) == (folder, family, torch.float32)
    assert [encoder.width for encoder in model.encoders] == ([32] if family == "sd1" else [24, 40])
    assert model.denoiser is model.pipe.unet
    for part in model.pipe.components.values():
        if isinstance(part, torch.nn.Module):
            assert not part.training
            assert not any(weight.requires_grad for weight in part.parameters())


@pytest.mark.parametrize("spell", [prefixed, flat])
def test_old_and_new_names_of_a_text_encoders_weights_are_both_loaded(folder, family, original, spell):
    for part in WEIGHTS:
        if part.startswith("text_encoder") and (folder / part).is_dir():
            rewrite(folder, part, spell)
    assert_same_weights(load(folder, family).pipe, original)


def test_the_old_names_of_a_vaes_attention_are_loaded(sd1_folder, originals):
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def rename(state):
        for new, name in old.items():
            state = {key.replace(f"attentions.0.{new}.", f"attentions.0.{name}."): t for key, t in state.items()}
        return state

    rewrite(sd1_folder, "vae", rename)
    assert_same_weights(load(sd1_folder).pipe, originals["sd1"][0])


@pytest.mark.parametrize("part", ["text_encoder", "unet", "vae"])
def test_a_part_with_unknown_weight_names_is_an_error(sd1_folder, part):
    rewrite(sd1_folder, part, lambda state: {f"other.{name}": tensor for name, tensor in state.items()})
    with pytest.raises(StageError, match=rf"{part} lacks (\d+) of its \1 weights"):
        load(sd1_folder)


@pytest.mark.parametrize(
    ("part", "weight"),
    [("text_encoder_2", "text_projection.weight"), ("text_encoder", "final_layer_norm.bias"), ("unet", "conv_in.bias")],
)
def test_a_missing_weight_is_an_error_with_its_name(sdxl_folder, part, weight):
    rewrite(sdxl_folder, part, lambda state: {name: tensor for name, tensor in state.items() if name != weight})
    with pytest.raises(StageError, match=rf"{part} lacks 1 of its \d+ weights \({weight}"):
        load(sdxl_folder, "sdxl")


def test_a_weight_of_another_shape_is_refused(sd1_folder):
    rewrite(sd1_folder, "text_encoder", lambda state: {name: tensor[:3].clone() for name, tensor in state.items()})
    with pytest.raises(StageError, match=r"cannot be loaded: .*\(in text_encoder\)"):
        load(sd1_folder)


@pytest.mark.parametrize("part", ["text_encoder", "unet", "vae"])
@pytest.mark.parametrize("share", [0.0, 0.6])
def test_a_truncated_file_is_refused(sd1_folder, part, share):
    path = sd1_folder / WEIGHTS[part]
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(StageError, match=rf"cannot be loaded: .*\(in {part}\)$"):
        load(sd1_folder)


@pytest.mark.parametrize("part", ["text_encoder", "unet", "tokenizer", "scheduler"])
def test_a_missing_part_is_refused(sd1_folder, part):
    shutil.rmtree(sd1_folder / part)
    with pytest.raises(StageError, match=r"cannot be loaded: .*"):
        load(sd1_folder)


@pytest.mark.parametrize("file", ["tokenizer.json", "tokenizer_config.json"])
def test_a_tokenizer_without_its_vocabulary_is_refused(sdxl_folder, file):
    """Transformers makes an empty tokenizer of a folder without files, in which each text is unknown tokens."""
    for path in (sdxl_folder / "tokenizer_2").iterdir():
        if path.name != file:
            path.unlink()
    if file == "tokenizer.json":
        assert len(load(sdxl_folder, "sdxl").encoders) == 2
    else:
        with pytest.raises(StageError, match="tokenizer_2 is empty"):
            load(sdxl_folder, "sdxl")


def test_a_tokenizer_with_more_tokens_than_the_encoder_has_vectors_is_refused(sd1_folder):
    def cut(state):
        name = "embeddings.token_embedding.weight"
        return state | {name: state[name][:-1].clone()}

    rewrite(sd1_folder, "text_encoder", cut)
    config = json.loads((sd1_folder / "text_encoder" / "config.json").read_text("utf-8"))
    edit_json(sd1_folder / "text_encoder" / "config.json", vocab_size=config["vocab_size"] - 1)
    with pytest.raises(StageError, match=r"tokenizer has 739 tokens, but text_encoder has 738 vectors"):
        load(sd1_folder)


def test_a_folder_that_is_no_model_is_refused(tmp_path):
    with pytest.raises(StageError, match=r"has no model_index\.json"):
        load(tmp_path)


@pytest.mark.parametrize("index", ["", "[]", "{", "{}", '{"_class_name": "AuraFlowPipeline"}'])
def test_a_broken_or_foreign_index_is_refused(sd1_folder, index):
    (sd1_folder / "model_index.json").write_text(index, "utf-8")
    with pytest.raises(StageError, match=r"cannot be loaded|is not supported"):
        load(sd1_folder)


@pytest.mark.parametrize("entry", [["stable_diffusion", "StableDiffusionSafetyChecker"], [None, None]])
def test_a_safety_checker_is_left_out(sd1_folder, entry):
    edit_json(
        sd1_folder / "model_index.json", safety_checker=entry, requires_safety_checker=True,
        feature_extractor=["transformers", "CLIPImageProcessor"] if entry[0] else entry,
    )  # fmt: skip
    pipe = load(sd1_folder).pipe
    assert pipe.safety_checker is None
    assert pipe.feature_extractor is None


def test_float16_keeps_a_vae_exact_in_float32_where_its_config_asks_for_it(folder, family, original):
    model = load(folder, family, "float16")
    assert {model.pipe.unet.dtype, model.pipe.text_encoder.dtype} == {torch.float16}
    assert torch.equal(model.pipe.vae.decoder.conv_in.weight, original.vae.decoder.conv_in.weight)
    [image] = model.pipe("a red ring", num_inference_steps=1, generator=torch.Generator().manual_seed(0)).images
    assert image.size == (16, 16)
    edit_json(folder / "vae" / "config.json", force_upcast=False)
    assert load(folder, family, "float16").pipe.vae.dtype == torch.float16


def test_bfloat16_is_the_type_of_every_part(sdxl_folder, originals):
    model = load(sdxl_folder, "sdxl", "bfloat16")
    parts = [part for part in model.pipe.components.values() if isinstance(part, torch.nn.Module)]
    assert len(parts) == 4
    assert {weight.dtype for part in parts for weight in part.parameters()} == {torch.bfloat16}
    assert torch.equal(model.pipe.unet.conv_in.weight, originals["sdxl"][0].unet.conv_in.weight.bfloat16())


def test_files_of_a_variant_are_taken_and_parts_without_one_use_the_plain_file(sd1_folder, originals):
    unet = sd1_folder / WEIGHTS["unet"]
    rewrite(sd1_folder, "unet", lambda state: {name: tensor + 1 for name, tensor in state.items()})
    unet.rename(unet.with_suffix(".fp16.safetensors"))
    pipe = load(sd1_folder, variant="fp16").pipe
    assert torch.equal(pipe.unet.conv_in.bias, originals["sd1"][0].unet.conv_in.bias + 1)
    assert torch.equal(pipe.vae.quant_conv.bias, originals["sd1"][0].vae.quant_conv.bias)
    with pytest.raises(StageError, match=r"\(in unet\); set model\.variant = 'fp16'"):
        load(sd1_folder)
    with pytest.raises(StageError, match=r"model\.variant = 'ema': .* \(variants there: fp16\)"):
        load(sd1_folder, variant="ema")


def test_a_folder_in_shards_is_loaded(sd1_folder, originals):
    """As large models are saved: several files and an index."""
    original = originals["sd1"][0]
    shutil.rmtree(sd1_folder / "unet")
    original.unet.save_pretrained(sd1_folder / "unet", max_shard_size="100KB", variant="fp16")
    assert len(list((sd1_folder / "unet").glob("*-of-*.safetensors"))) > 1
    assert_same_weights(load(sd1_folder, variant="fp16").pipe, original)


def test_a_prepared_pipeline_has_no_path(originals):
    model = prepare(originals["sd1"][0], spec_of("tiny"), None, CPU)
    assert model.path is None


def test_the_index_of_a_saved_folder_is_not_changed(sd1_folder):
    before = json.loads((sd1_folder / "model_index.json").read_text("utf-8"))
    load(sd1_folder)
    assert json.loads((sd1_folder / "model_index.json").read_text("utf-8")) == before
