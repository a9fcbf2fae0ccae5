"""What programs do with a file, for every kind of file on which a verdict was wrong once."""

import struct

import pytest
from lora_files import lora, module, peft

from pivotune.converters.errors import ConvertError
from pivotune.converters.families import all_families
from pivotune.converters.inspection import inspect
from pivotune.converters.lora_modules import modules_of
from pivotune.converters.programs import NAMES, programs, reads
from pivotune.converters.programs.loras import applied
from pivotune.converters.safetensors_file import read, write
from pivotune.converters.stored import Stored
from pivotune.converters.tensor import RawTensor

UNET = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
SDXL = "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"
SGM = "input_blocks.1.1.transformer_blocks.0.attn2.to_k"
FLAT = UNET.replace(".", "_")
SD1 = {*NAMES} - {"fooocus", "drawthings"}  # programs with rules for LoRAs of Stable Diffusion 1.x
COMFYUI = {"comfyui", "swarmui", "reforge", "forge-neo"}  # programs with its LoRA loader


@pytest.fixture
def saved(tmp_path):
    """As everywhere, but a test may write the same file again."""

    def make(name, tensors, metadata=None):
        write(tmp_path / name, tensors, metadata or {}, overwrite=True)
        return tmp_path / name

    return make


@pytest.fixture
def verdicts(saved, tensors):
    """verdicts({name: shape}, metadata) gives program -> (answer, notes) for such a file."""

    def check(shapes, metadata=None, name="x.safetensors"):
        facts = inspect(saved(name, tensors(shapes), metadata))
        return {key: (verdict["loads"], " ".join(verdict["notes"])) for key, verdict in facts["programs"].items()}

    return check


def answers(found):
    return {name: answer for name, (answer, _) in found.items()}


@pytest.mark.parametrize(
    ("shapes", "able"),
    [
        (lora(f"lora_unet_{FLAT}"), SD1),
        (peft(f"unet.{UNET}"), {"diffusers", "onetrainer"}),
        (lora(f"diffusion_model.{SGM}", alpha=(1,)), {"forge", "onetrainer", *COMFYUI}),
        (peft(SGM), {"onetrainer"}),
        (lora(f"lycoris_{FLAT}"), {"forge", "onetrainer", *COMFYUI}),
        (lora(f"unet.{UNET.replace('to_k', 'processor.to_k')}_lora", up="up.weight", down="down.weight"),
         {"forge", "diffusers", *COMFYUI}),
    ],
    ids=["kohya", "peft", "comfyui", "original", "lycoris", "diffusers, old"],
)  # fmt: skip
def test_a_layout_of_which_a_program_applies_no_module_is_no(shapes, able, verdicts):
    found = verdicts(shapes, {"ss_base_model_version": "sd_v1"})
    assert {name for name, answer in answers(found).items() if answer == "yes"} - {"onetrainer"} == able - {
        "onetrainer"
    }
    assert all("0 of 1 module:" in found[name][1] or answer != "no" or name not in ("a1111", "kohya")
               for name, (answer, _) in found.items())  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "able"),
    [
        ("LoRA", SD1),
        ("LoCon with lora_mid", SD1 - {"diffusers", "kohya", "onetrainer"}),
        ("LoHa", SD1 - {"diffusers", "kohya"}),
        ("LoKr", SD1 - {"diffusers", "kohya"}),
        ("GLoRA", {"a1111", "forge", "sdnext", *COMFYUI}),
        ("IA3", {"a1111", "sdnext", "invokeai"}),
        ("OFT", {"a1111", "sdnext", *COMFYUI}),
        ("BOFT", {"a1111", "sdnext", *COMFYUI}),
        ("full difference", {"a1111", "forge", "sdnext", "invokeai", *COMFYUI}),
        ("norm", {"a1111", "forge", "sdnext", "invokeai", *COMFYUI}),
    ],
)
def test_each_program_applies_some_kinds_of_modules(kind, able, tensors, tmp_path):
    """Beside a LoRA's module, by which InvokeAI's import tells the base model."""
    made = tensors(module(f"lora_unet_{FLAT.replace('to_k', 'to_v')}", kind) | module(f"lora_unet_{FLAT}", "LoRA"))
    file = Stored(tmp_path / "x.safetensors", made)
    assert [found.kind for found in modules_of(made)] == [kind, "LoRA"]
    found = {name: applied(programs()[name], file, all_families()["sd1"]) for name in SD1}
    assert {name for name, layers in found.items() if layers.applied == layers.modules == 2} == able


def test_invokeai_imports_no_lora_in_which_it_finds_no_width(verdicts):
    assert (
        verdicts(lora(f"lora_unet_{FLAT.replace('attn2', 'attn1')}", 320), {"ss_base_model_version": "sd_v1"})[
            "invokeai"
        ][0]
        == "no"
    )
    assert verdicts(module(f"lora_unet_{FLAT}", "LoKr"), {"ss_base_model_version": "sd_v1"})["invokeai"][0] == "no"
    text = lora("lora_te_text_model_encoder_layers_0_self_attn_q_proj")
    assert verdicts(text, {"ss_base_model_version": "sd_v1"})["invokeai"][0] == "yes"
    deep = SDXL.replace("blocks.0.attn2", "blocks.2.attn1").replace(".", "_")
    assert verdicts(lora(f"lora_unet_{deep}", 640))["invokeai"][0] == "yes"


def test_dora_is_partly_where_its_magnitudes_are_left_out(verdicts):
    found = verdicts(lora(f"lora_unet_{FLAT}", dora_scale=(320, 1)))
    assert found["a1111"][0] == "yes"
    for name in ("diffusers", "kohya"):
        assert found[name][0] == "partly"
        assert "magnitudes of DoRA" in found[name][1]


def test_one_module_of_an_unknown_kind_costs_a1111_the_whole_lora_and_comfyui_that_module(verdicts):
    shapes = lora(f"lora_unet_{FLAT}") | {f"lora_unet_{FLAT.replace('to_k', 'to_v')}.lora_embedding_A": (4, 4)}
    found = verdicts(shapes, {"ss_base_model_version": "sd_v1"})
    assert found["a1111"][0] == "no"
    assert "whole LoRA" in found["a1111"][1]
    assert found["comfyui"][0] == "partly"
    assert "1 of 2 modules" in found["comfyui"][1]


@pytest.mark.parametrize(
    ("kind", "able"),
    [*((kind, 2) for kind in ("LoRA", "LoCon with lora_mid", "LoHa", "LoKr", "GLoRA", "norm")), ("OFT", 1), ("IA3", 1)],
)
def test_fooocus_applies_the_kinds_of_an_early_comfyui(kind, able, tensors, tmp_path):
    made = tensors(module(f"lora_unet_{FLAT.replace('to_k', 'to_v')}", kind) | module(f"lora_unet_{FLAT}", "LoRA"))
    file = Stored(tmp_path / "x.safetensors", made)
    assert applied(programs()["fooocus"], file, all_families()["sdxl"]).applied == able


def test_fooocus_runs_sdxl_alone_and_reads_no_peft_and_no_dora(verdicts):
    name = f"lora_unet_{SDXL.replace('.', '_')}"
    sdxl = {"ss_base_model_version": "sdxl_base_v1-0"}
    assert verdicts(lora(f"lora_unet_{FLAT}"), {"ss_base_model_version": "sd_v1"})["fooocus"] == (
        "no", "cannot run Stable Diffusion 1.x")  # fmt: skip
    assert verdicts(lora(name, 2048), sdxl)["fooocus"] == ("yes", "")
    assert verdicts(lora(name, 2048, dora_scale=(640, 1)), sdxl)["fooocus"][0] == "partly"
    answer, note = verdicts(peft("unet.down_blocks.1.resnets.0.conv1", 640), sdxl)["fooocus"]
    assert (answer, "lora_A" in note) == ("no", True)
    weighted = {}
    for number in range(13):
        weighted |= lora(name.replace("blocks_0_attn2", f"blocks_{number}_attn2"), 2048, dora_scale=(640, 1))
    assert "more than 12" in verdicts(weighted, sdxl)["fooocus"][1]


def test_swarmui_applies_no_text_encoders_of_flux_and_reforge_is_known_for_stable_diffusion(verdicts):
    text = lora("lora_te1_text_model_encoder_layers_0_self_attn_q_proj")
    found = verdicts(FLUX | text)
    assert found["comfyui"][0] == "yes"
    assert found["swarmui"][0] == "partly"
    assert "1 of 3 modules" in found["swarmui"][1]
    assert found["reforge"][0] == "not known"
    assert verdicts(OTHERS["wan"])["reforge"][0] == "not known"


def test_comfyui_needs_a_space_after_a_prompt_and_swarmui_types_it_itself(run, saved, rows):
    saved("cat.safetensors", {"emb_params": rows(1, 768)})
    lines = run("inspect", "cat.safetensors").output.splitlines()
    assert any(line.endswith("embedding:cat  followed by a space") for line in lines)
    assert any(line.endswith("<embed:cat>") for line in lines)
    found = inspect("cat.safetensors")["programs"]
    assert (found["comfyui"]["after"], found["swarmui"]["after"]) == ("followed by a space", "")


def test_forge_skips_a_lora_with_more_than_twelve_tensors_that_match_no_module(verdicts):
    others = {}
    for number in range(7):
        others |= peft(f"unet.{UNET.replace('blocks.0.attn2', f'blocks.{number}.attn2')}")
    assert verdicts(lora(f"lora_unet_{FLAT}") | others)["forge"][0] == "no"
    assert verdicts(lora(f"lora_unet_{FLAT}") | dict(list(others.items())[:12]))["forge"][0] == "partly"


FLUX = lora("lora_unet_single_blocks_0_linear2", 15360) | lora("lora_unet_double_blocks_0_img_attn_proj", 3072)
BUNDLED = {"bundle_emb.cat.clip_l": (2, 768), "bundle_emb.cat.t5": (2, 4096)}


def test_sdnext_reads_its_folder_for_stable_diffusion_alone_and_loses_a_kohya_flux_lora_with_embeddings(verdicts):
    assert verdicts({"clip_l": (2, 768), "t5": (2, 4096)})["sdnext"][0] == "no"
    assert verdicts({"clip_l": (2, 768), "clip_g": (2, 1280), "t5": (2, 4096)})["sdnext"][0] == "no"
    assert verdicts(FLUX)["sdnext"][0] == "yes"
    answer, note = verdicts(FLUX | BUNDLED)["sdnext"]
    assert answer == "no"
    assert "drops the transformer" in note


OTHERS = {
    "z-image": peft("diffusion_model.layers.0.attention.to_q", 3840),
    "qwen-image": peft("transformer.transformer_blocks.0.img_mlp.net.2", 12288),
    "wan": peft("diffusion_model.blocks.0.cross_attn.k", 5120),
    "flux2-klein-9b": peft("diffusion_model.double_blocks.0.img_attn.proj", 4096),
    "flux2-klein-4b": peft("transformer.single_transformer_blocks.0.attn.to_qkv_mlp_proj", 3072),
    "anima": lora("lora_unet_blocks_0_cross_attn_q_proj", 2048),
    "krea2": peft("transformer.text_fusion.0.attn.to_q", 2560),
    "sd3": lora("lycoris_transformer_blocks_0_attn_to_q", 2432),
    "hunyuan-video": lora("lora_unet_double_blocks_19_img_attn_qkv", 3072),
    "hidream": peft("transformer.double_stream_blocks.0.block.attn1.to_q", 2560),
    "pixart": peft("transformer.transformer_blocks.0.attn1.to_q", 1152),
    "flux": peft("transformer.single_transformer_blocks.37.attn.to_q", 3072),
}


@pytest.mark.parametrize("family", OTHERS)
def test_blocks_tell_the_family_and_no_program_is_no_for_a_reason_that_was_not_checked(family, saved, tensors):
    facts = inspect(saved("x.safetensors", tensors(OTHERS[family])))
    assert facts["families"] == [family]
    for name, verdict in facts["programs"].items():
        known = programs()[name].runs is None or family in programs()[name].runs
        assert verdict["loads"] != "no" or not known or verdict["notes"]
        assert "widths" not in " ".join(verdict["notes"])
    assert "yes" in {verdict["loads"] for verdict in facts["programs"].values()}


def test_a_lora_for_a_model_that_is_not_known_is_not_known(verdicts):
    assert set(answers(verdicts(peft("transformer.strange_layers.0.to_q", 777))).values()) == {"not known"}


@pytest.mark.parametrize(
    "name", [f"lora_unet_{FLAT.replace('attn2', 'attn1')}", f"unet.{UNET.replace('2.to', '1.to')}"]
)
def test_blocks_of_a_unet_rule_out_all_other_models(name, saved, tensors):
    facts = inspect(saved("x.safetensors", tensors(lora(name, 320))))
    assert facts["families"] == ["sd1", "sd2", "sdxl"]


@pytest.mark.parametrize("family", ["wan", "z-image", "anima"])
@pytest.mark.parametrize("strict", [(), ("--strict",)])
def test_an_embedding_is_not_bundled_into_a_lora_of_another_family(family, strict, run, saved, rows, tensors):
    saved("l.safetensors", tensors(OTHERS[family]))
    saved("e.safetensors", {"clip_l": rows(2, 768), "clip_g": rows(2, 1280)})
    result = run("bundle", "l.safetensors", "e.safetensors", "--out", "b.safetensors", *strict)
    assert f"is for {all_families()[family].title}" in str(result.exception)
    saved("l.safetensors", tensors(peft("strange.0.to_q")))
    result = run("bundle", "l.safetensors", "e.safetensors", "--out", "b.safetensors", *strict)
    assert "--family" in str(result.exception)


def test_bundle_for_a1111_does_not_print_a_prompt_that_does_nothing(run, saved, rows, tmp_path, tensors):
    saved("l.safetensors", tensors(peft(f"unet.{UNET}")))
    saved("e.safetensors", {"emb_params": rows(2, 768)})
    result = run("bundle", "l.safetensors", "e.safetensors", "--for", "a1111", "--out", "b.safetensors")
    assert "0 of 1 module:" in str(result.exception)
    assert "retarget --for a1111" in str(result.exception)
    assert not (tmp_path / "b.safetensors").exists()


FACTS = '{"unet.r": 4, "unet.lora_alpha": 8}'


@pytest.mark.parametrize(("facts", "alpha"), [({}, None), ({"lora_adapter_metadata": FACTS}, 8.0)])
def test_modules_are_renamed_for_a_program_that_reads_kohyas_names(facts, alpha, run, saved, same, tensors):
    made = tensors(peft(f"unet.{UNET}") | peft("text_encoder.text_model.encoder.layers.0.self_attn.q_proj"))
    saved("l.safetensors", made, facts)
    result = run("retarget", "l.safetensors", "--for", "a1111", "--out", "out", "--family", "sd1")
    assert "<lora:l:1>" in result.output
    found, _ = read("out/l.safetensors")
    te = "lora_te_text_model_encoder_layers_0_self_attn_q_proj"
    given = list(made.values())
    expected = dict(zip([f"lora_unet_{FLAT}.lora_down.weight", f"lora_unet_{FLAT}.lora_up.weight",
                         f"{te}.lora_down.weight", f"{te}.lora_up.weight"], given, strict=True))  # fmt: skip
    if alpha is not None:
        expected[f"lora_unet_{FLAT}.alpha"] = RawTensor("F32", (), struct.pack("<f", alpha))
    assert same(found, expected)
    assert inspect("out/l.safetensors")["programs"]["a1111"]["loads"] == "yes"


def test_what_cannot_be_renamed_says_why(run, saved, tensors):
    saved("l.safetensors", tensors(OTHERS["flux"]))
    result = run("retarget", "l.safetensors", "--for", "kohya", "--out", "out")
    assert "no module of FLUX.1" in str(result.exception)
    rank = {"lora_adapter_metadata": '{"unet.r": 4, "unet.lora_alpha": 4, "unet.use_rslora": true}'}
    saved("l.safetensors", tensors(peft(f"unet.{UNET}")), rank)
    result = run("retarget", "l.safetensors", "--for", "a1111", "--out", "out", "--family", "sd1")
    assert "use_rslora" in str(result.exception)


def test_diffusers_uses_one_vector_of_a_name_with_upper_case_letters_and_retarget_writes_lower_case(run, saved, rows):
    saved("x.safetensors", {"<tokA>": rows(3, 768)})
    verdict = inspect("x.safetensors")["programs"]["diffusers"]
    assert verdict["loads"] == "partly"
    assert any("first vector" in note for note in verdict["notes"])
    assert inspect(saved("one.safetensors", {"<tokA>": rows(1, 768)}))["programs"]["diffusers"]["loads"] == "yes"
    result = run("retarget", "x.safetensors", "--for", "diffusers", "--family", "sd1", "--out", "out")
    assert "type: <toka>" in result.output
    (path,) = [line.split("  ")[0] for line in result.output.splitlines()]
    assert list(read(path)[0]) == ["<toka>"]
    assert inspect(path)["programs"]["diffusers"]["loads"] == "yes"


def test_files_for_two_encoders_of_diffusers_say_which_is_which(run, saved, rows):
    saved("tokx.safetensors", {"clip_l": rows(1, 768), "clip_g": rows(1, 1280)})
    lines = run("retarget", "tokx.safetensors", "--for", "diffusers", "--out", "out").output.splitlines()
    assert [line.rpartition("(")[2] for line in lines] == ["vectors of text_encoder)", "vectors of text_encoder_2)"]


def test_an_image_is_read_by_four_programs_which_call_the_embedding_as_it_says_itself(rows, tmp_path):
    file = Stored(tmp_path / "x.png", {"string_to_param.*": rows(2, 768)}, {"name": "inside"}, "image")
    found = {name: reads(name, file, {"clip_l": 768}) for name in NAMES}
    assert {name for name, reading in found.items() if not reading.refusal} == {
        "a1111",
        "forge",
        "forge-neo",
        "reforge",
    }
    assert list(found["a1111"].embeddings) == list(found["forge"].embeddings) == ["inside"]


def test_retarget_is_not_recommended_for_programs_that_would_refuse(saved, rows):
    assert inspect(saved("t5.safetensors", {"t5": rows(2, 4096)}))["retarget"] == []
    facts = inspect(saved("x.safetensors", {"clip_l": rows(2, 768), "clip_g": rows(2, 1280)}))
    assert facts["retarget"] == ["diffusers"]


def test_real_vectors_are_written_where_those_of_another_encoder_are_only_outputs(run, saved, rows):
    zero, out = RawTensor("F32", (2, 4096), bytes(32768)), rows(2, 4096)
    saved("x.safetensors", {"clip_l": rows(2, 768), "t5": zero, "t5_out": out})
    assert inspect("x.safetensors")["programs"]["comfyui"]["loads"] == "partly"
    result = run("retarget", "x.safetensors", "--for", "comfyui", "--out", "out")
    assert result.exit_code == 0
    assert "only its output vectors were trained" in result.stderr
    assert list(read("out/x.safetensors")[0]) == ["clip_l"]
    saved("y.safetensors", {"t5": zero, "t5_out": out})
    result = run("retarget", "y.safetensors", "--for", "comfyui", "--family", "chroma", "--out", "out")
    assert "--for onetrainer" in str(result.exception)


def test_forge_uses_one_encoders_vectors_for_stable_diffusion_3(verdicts):
    facts = {"pivotune.family": "sd3"}
    assert verdicts({"clip_g": (2, 1280)}, facts)["forge"][0] == "partly"
    assert verdicts({"clip_l": (2, 768), "clip_g": (2, 1280), "t5": (2, 4096)}, facts)["forge"][0] == "no"


def test_inspect_and_retarget_judge_unequal_counts_and_values_alike(run, saved, rows):
    saved("x.safetensors", {"clip_l": rows(8, 768), "clip_g": rows(4, 1280)})
    facts = inspect("x.safetensors")["programs"]
    result = run("retarget", "x.safetensors", "--for", "a1111", "--out", "out")
    assert facts["a1111"]["loads"] == "partly"
    assert facts["a1111"]["notes"][0] in result.stderr
    assert facts["comfyui"]["loads"] == "yes"
    nan = RawTensor("F32", (1, 768), struct.pack("<f", float("nan")) * 768)
    saved("n.safetensors", {"emb_params": nan})
    assert inspect("n.safetensors")["programs"]["a1111"]["loads"] == "no"
    (note,) = inspect("n.safetensors")["programs"]["a1111"]["notes"]
    assert note in str(run("retarget", "n.safetensors", "--for", "a1111", "--out", "out").exception)


def test_a_bundles_own_key_comes_back(run, saved, rows, lora_with, same):
    made = lora_with(768, cat={"string_to_param.*": rows(2, 768)})
    saved("b.safetensors", made)
    assert run("unbundle", "b.safetensors", "--for", "a1111", "--out", "out").exit_code == 0
    assert run("bundle", "out/b.safetensors", "out/cat.safetensors", "--out", "again.safetensors").exit_code == 0
    assert same(read("again.safetensors")[0], made)


def test_a_bundle_of_output_vectors_is_unbundled_for_onetrainer(run, saved, rows, lora_with):
    zero = RawTensor("F32", (1, 768), bytes(3072))
    saved("b.safetensors", lora_with(768, cat={"clip_l": zero, "clip_l_out": rows(1, 768)}))
    result = run("unbundle", "b.safetensors", "--out", "out")
    assert result.exit_code == 0
    assert set(read("out/cat.safetensors")[0]) == {"emp_params", "emp_params_out"}


def test_xti_files_have_verdicts(saved, rows):
    layers = [f"IN0{n}" for n in (1, 2, 4, 5, 7, 8)] + ["MID"] + [f"OUT{n:02}" for n in range(3, 12)]
    facts = inspect(saved("x.safetensors", {layer: rows(1, 768) for layer in layers}))
    assert {name: verdict["loads"] for name, verdict in facts["programs"].items() if verdict["loads"] != "no"} == {
        "comfyui": "partly", "swarmui": "partly", "kohya": "yes"}  # fmt: skip


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"<!DOCTYPE html><html>", "web page"),
        (b"\n  <html lang='en'>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1", "git lfs pull"),
        (b'{"error": "not found"}', "error message"),
        (b"\x1f\x8b\x08\0", "unpack"),
        (bytes(100), "incomplete"),
        (b"PK\3\4" + bytes(60), "zip"),
        (struct.pack("<Q", 100_000) + b'{"a":', "truncated"),
    ],
)
def test_a_wrong_or_damaged_download_says_what_it_is_and_what_to_do(content, says, tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(ConvertError, match=says):
        inspect(path)


@pytest.mark.parametrize(
    ("key", "width", "family"),
    [("qwen3_8b", 4096, "flux2-klein-9b"), ("qwen25_7b", 3584, "qwen-image"), ("mistral3_24b", 5120, "flux2-dev")],
)
def test_keys_of_language_models_tell_the_family(key, width, family, saved, rows):
    assert inspect(saved("x.safetensors", {key: rows(2, width)}))["family"] == family


def test_z_image_and_flux2_klein_share_key_and_width_and_are_told_apart_by_metadata(saved, rows):
    assert inspect(saved("x.safetensors", {"qwen3_4b": rows(2, 2560)}))["families"] == ["flux2-klein-4b", "z-image"]
    architecture = {"modelspec.architecture": "z-image/textual-inversion"}
    assert inspect(saved("x.safetensors", {"qwen3_4b": rows(2, 2560)}, architecture))["family"] == "z-image"


def test_a_width_of_no_text_encoder_is_not_said_to_fit_several(saved, rows):
    notes = inspect(saved("w.safetensors", {"emb_params": rows(2, 999)}))["notes"]
    assert any("999 wide, which is the width of no text encoder" in note for note in notes)
    assert not any("--family" in note for note in notes)


def test_vectors_under_another_name_are_not_said_to_be_missing(saved, rows):
    found = inspect(saved("x.safetensors", {"clip_l": rows(2, 768), "t5": rows(2, 4096)}))
    notes = found["programs"]["comfyui"]["notes"]
    assert "its t5 vectors are not found: no effect on that text encoder" in notes
    alone = inspect(saved("y.safetensors", {"clip_l": rows(2, 768)}, {"pivotune.family": "flux"}))
    assert "no t5 vectors: no effect on that text encoder" in alone["programs"]["comfyui"]["notes"]
