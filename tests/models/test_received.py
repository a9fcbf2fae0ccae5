"""Model folders received from others: one line, whatever is in them."""

import json
import os

import pytest
import torch
from models.folders import spec_of
from tiny import tiny_sd

from pivotune.pipeline.errors import StageError
from pivotune.pipeline.models.load import load_model
from pivotune.pipeline.models.received import check_model_folder
from pivotune.pipeline.models.tokenizers import load_tokenizers
from pivotune.pipeline.run.samples import drawing


@pytest.fixture
def folder(tmp_path):
    tiny_sd().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def changed(folder, name, **values):
    path = folder / name
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | values), "utf-8")


REFUSED = [
    ("text_encoder/config.json", {"_attn_implementation": "name/kernel"}, "would load other code"),
    ("text_encoder/config.json", {"text_config": {"attn_implementation": "name/kernel"}}, "would load other code"),
    ("text_encoder/config.json", {"auto_map": {"AutoModel": "evil.Model"}}, "is not supported"),
    ("text_encoder/config.json", {"quantization_config": {"quant_method": "gptq"}}, "quantised"),
    ("text_encoder/config.json", {"num_hidden_layers": 10**9}, "is too large"),
    ("unet/config.json", {"block_out_channels": [8, 10**9]}, "is too large"),
    ("unet/config.json", {"sample_size": float("nan")}, "is out of range"),
    ("vae/config.json", {"scaling_factor": None}, "must be a number above 0"),
    ("vae/config.json", {"shift_factor": {"a": 1}}, "shift_factor must be a number"),
    ("scheduler/scheduler_config.json", {"num_train_timesteps": "x"}, "must be a number above 0"),
    ("tokenizer/tokenizer_config.json", {"model_max_length": "abc"}, "must be a number above 0"),
    ("scheduler/scheduler_config.json", {"prediction_type": ["epsilon"]}, "must be a name"),
    ("scheduler/scheduler_config.json", {"num_train_timesteps": {"a": 1}}, "must be a number above 0"),
    ("model_index.json", {"unet": ["evil", "UNet"]}, "must be a class of"),
    ("model_index.json", {"../unet": ["diffusers", "UNet2DConditionModel"]}, "not a valid name of a part"),
]


@pytest.mark.parametrize(("name", "values", "why"), REFUSED)
def test_a_config_that_no_model_has_is_refused_by_file_and_key(folder, name, values, why):
    check_model_folder(folder)
    changed(folder, name, **values)
    with pytest.raises(StageError, match=why) as caught:
        check_model_folder(folder)
    assert name in str(caught.value)


@pytest.mark.parametrize(
    "content", ["", "[null, null]", "[" * 100_000, '{"a":' * 200 + "1" + "}" * 200, " " * (9 << 20)]
)
def test_a_config_that_is_not_a_small_object_is_an_error(folder, content):
    (folder / "scheduler" / "scheduler_config.json").write_text(content)
    with pytest.raises(StageError, match=r"scheduler_config\.json"):
        check_model_folder(folder)


@pytest.mark.parametrize("kind", ["fifo", "device", "nowhere", "circle", "private"])
def test_only_regular_files_of_the_model_itself_are_opened(folder, tmp_path, kind):
    (tmp_path / "private.json").write_text("{}")
    path = folder / "unet" / "config.json"
    path.unlink()
    places = {"device": "/dev/zero", "nowhere": "no", "circle": path.name, "private": tmp_path / "private.json"}
    path.symlink_to(places[kind]) if kind in places else os.mkfifo(path)
    with pytest.raises(StageError, match=r"unet/config\.json"):
        check_model_folder(folder)


def test_a_tokenizer_that_names_a_file_elsewhere_is_refused(folder, tmp_path):
    (tmp_path / "private.txt").write_text("private")
    changed(folder, "tokenizer/tokenizer_config.json", vocab_file="../../private.txt")
    with pytest.raises(StageError, match="vocab_file points outside the model"):
        check_model_folder(folder)
    changed(folder, "tokenizer/tokenizer_config.json", vocab_file="/nowhere/of/the/authors/vocab.json")
    check_model_folder(folder)


def test_parts_are_checked_even_if_the_index_omits_them(folder):
    changed(folder, "text_encoder/config.json", auto_map={"AutoModel": "evil.Model"})
    (folder / "model_index.json").unlink()
    with pytest.raises(StageError, match="is not supported"):
        check_model_folder(folder)


def test_an_adapter_beside_a_model_is_refused(folder):
    (folder / "text_encoder" / "adapter_config.json").write_text('{"base_model_name_or_path": "../../other"}')
    with pytest.raises(StageError, match="an adapter next to"):
        check_model_folder(folder)


@pytest.mark.parametrize("says_null", [False, True])
def test_a_tokenizer_without_a_limit_has_clips(folder, says_null):
    if says_null:
        changed(folder, "tokenizer/tokenizer_config.json", model_max_length=None)
    else:
        (folder / "tokenizer" / "tokenizer_config.json").unlink()
    assert load_model(spec_of(folder), torch.device("cpu")).encoders[0].tokenizer.model_max_length == 77


def test_links_of_the_hub_cache_to_its_own_blobs_are_followed(folder, tmp_path):
    snapshot, blobs = tmp_path / "models--a--b" / "snapshots" / "1", tmp_path / "models--a--b" / "blobs"
    snapshot.parent.mkdir(parents=True)
    blobs.mkdir()
    folder.rename(snapshot)
    (snapshot / "unet" / "config.json").rename(blobs / "123")
    (snapshot / "unet" / "config.json").symlink_to("../../../blobs/123")
    check_model_folder(snapshot)


def test_values_of_real_models_are_accepted(folder, tmp_path):
    """A snapshot of the hub's cache with blobs alone, sharded weights, and a tokenizer that names a file beside it."""
    weights = {"layer": "model-00001-of-00002.safetensors"}
    index = {"metadata": {"total_size": 9_524_621_312}, "weight_map": weights}
    (folder / "text_encoder" / "model.safetensors.index.json").write_text(json.dumps(index))
    changed(folder, "tokenizer/tokenizer_config.json", special_tokens_map_file="./special_tokens_map.json",
            vocab_file="./vocab.json", model_max_length=10**30)  # fmt: skip
    changed(folder, "scheduler/scheduler_config.json", lambda_min_clipped=float("-inf"))
    for name in ("special_tokens_map.json", "vocab.json"):
        (folder / "tokenizer" / name).write_text("{}")
    snapshot, blobs = tmp_path / "models--a--b" / "snapshots" / "1", tmp_path / "models--a--b" / "blobs"
    snapshot.parent.mkdir(parents=True)
    blobs.mkdir()
    folder.rename(snapshot)
    for number, path in enumerate(path for path in sorted(snapshot.rglob("*")) if path.is_file()):
        path.rename(blobs / str(number))
        path.symlink_to(os.path.relpath(blobs / str(number), path.parent))
    check_model_folder(snapshot)


def test_only_known_files_of_a_tokenizer_are_exported(folder, tmp_path):
    (folder / "tokenizer" / "id_rsa").write_text("private")
    (tmp_path / "private.txt").write_text("private")
    (folder / "tokenizer" / "deep").mkdir()
    (folder / "tokenizer" / "deep" / "vocab.json").symlink_to(tmp_path / "private.txt")
    model = load_model(spec_of(folder), torch.device("cpu"))
    assert set(model.tokenizer_files["tokenizer"]) <= {"tokenizer.json", "tokenizer_config.json", "vocab.json",
                                                       "merges.txt", "special_tokens_map.json"}  # fmt: skip
    (folder / "tokenizer" / "special_tokens_map.json").unlink(missing_ok=True)
    (folder / "tokenizer" / "special_tokens_map.json").symlink_to(tmp_path / "private.txt")
    with pytest.raises(StageError, match="points outside the model"):
        load_model(spec_of(folder), torch.device("cpu"))


@pytest.mark.parametrize(("name", "values"), [
    ("tokenizer/tokenizer_config.json", {"bos_token": [5]}), ("unet/config.json", {"down_block_types": 5}),
    ("text_encoder/config.json", {"hidden_act": "no-such"}), ("scheduler/scheduler_config.json", {"beta_schedule": 5}),
])  # fmt: skip
def test_errors_of_libraries_are_one_line(folder, name, values):
    changed(folder, name, **values)
    with pytest.raises(StageError) as caught:
        load_model(spec_of(folder), torch.device("cpu"))
    assert "\n" not in str(caught.value)
    assert "model.base" in str(caught.value)


def test_a_vocabulary_of_another_shape_is_refused(folder):
    for name in ("vocab.json", "tokenizer.json"):
        (folder / "tokenizer" / name).write_text("5")
    with pytest.raises(StageError, match="tokenizer"):
        load_tokenizers(spec_of(folder))


@pytest.mark.parametrize("payload", [5, [1], {"state_dict": 5}])
def test_a_ckpt_without_tensors_is_an_error_without_advice_to_run_its_code(folder, tmp_path, payload):
    torch.save(payload, tmp_path / "m.ckpt")
    spec = spec_of(tmp_path / "m.ckpt", config=str(folder))
    with pytest.raises(StageError) as caught:
        load_model(spec, torch.device("cpu"))
    assert "weights_only" not in str(caught.value)


def test_missing_weights_and_parts_without_a_class_are_skipped(folder):
    (folder / "text_encoder" / "flax_model.msgpack").symlink_to("../../blobs/deleted")
    changed(folder, "model_index.json", requires_safety_checker=[None, True], image_encoder=[None, None])
    check_model_folder(folder)


def test_a_tokenizer_that_cannot_tokenize_is_an_error(folder):
    path = folder / "tokenizer" / "tokenizer.json"
    index_data = json.loads(path.read_text("utf-8"))
    index_data["model"] = {"type": "EmbeddingLevel", "vocab": {"ring": 0}, "unk_token": "gone"}
    path.write_text(json.dumps(index_data), "utf-8")
    with pytest.raises(StageError, match=r"the tokenizer in .*tokenizer cannot be loaded: "):
        load_tokenizers(spec_of(folder, family="sd1"))


def test_a_model_with_incompatible_parts_is_an_error_of_one_line(folder):
    spec, why = spec_of(folder), r"cannot draw an image: its files do not fit together \(TypeError: 1 \+ x"
    with pytest.raises(StageError, match=why), drawing(spec):
        raise TypeError("1 + x\n  and more")
    with pytest.raises(MemoryError), drawing(spec):  # the machine's, which another test covers
        raise MemoryError
