"""Each program's decisions, on the files that were seen to go well or badly in the programs themselves."""

import pytest

from pivotune.converters.families import all_families
from pivotune.converters.inspection import inspect
from pivotune.converters.programs import NAMES, programs, reads, reads_lora
from pivotune.converters.stored import Stored
from pivotune.converters.tensor import RawTensor

LORA = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k.lora_down.weight"


@pytest.fixture
def loads(rows, tmp_path):
    """loads("sd1", {"key": (2, 768)}) gives the programs that make something of such a file."""

    def check(family, shapes, name="cat.safetensors", **stored):
        tensors = {key: rows(*shape) for key, shape in shapes.items()}
        file = Stored(tmp_path / name, tensors, **stored)
        widths = all_families()[family].widths
        return {program for program in programs() if not reads(program, file, widths).refusal}

    return check


ALL = {*NAMES}
KIN = {"comfyui": {"swarmui", "fooocus"}}  # programs that read by another one's code
PICKLE = {"container": "pickle", "name": "cat.pt"}
REFUSED_ZIP = {
    **PICKLE,
    "names": frozenset(["torch.nn.modules.container.ParameterDict"]),
    "members": ("x/data.pkl", "x/data/0"),
}


@pytest.mark.parametrize(
    ("family", "shapes", "stored", "expected"),
    [
        ("sd1", {"emb_params": (2, 768)}, {}, ALL - {"onetrainer"}),
        ("sd1", {"emp_params": (2, 768)}, {}, ALL - {"invokeai"}),
        ("sd1", {"clip_l": (2, 768)}, {}, ALL - {"invokeai", "onetrainer"}),
        ("sd1", {"<cat>": (2, 768)}, {}, ALL - {"invokeai", "onetrainer"}),
        ("sd1", {"emp_params": (2, 768), "emp_params_out": (2, 768)}, {}, {"onetrainer", "comfyui", "kohya"}),
        ("sd1", {"emb_params": (2, 1024)}, {}, set()),
        ("sd1", {"emb_params": (0, 768)}, {}, ALL - {"onetrainer", "kohya"}),
        ("sd1", {"*": (2, 768)}, {}, ALL - {"onetrainer", "diffusers", "invokeai"}),
        ("sd2", {"emb_params": (2, 1024)}, {}, ALL - {"onetrainer"}),
        ("sdxl", {"clip_l": (2, 768), "clip_g": (2, 1280)}, {}, ALL - {"diffusers"}),
        ("sdxl", {"clip_l": (2, 768)}, {}, {"comfyui", "diffusers"}),
        ("sdxl", {"<cat>": (2, 1280)}, {}, {"comfyui", "diffusers"}),
        ("sdxl", {"emb_params": (2, 2048)}, {}, set()),
        ("sd3", {"clip_l": (2, 768), "clip_g": (2, 1280), "t5": (2, 4096)}, {},
         {"a1111", "reforge", "comfyui", "onetrainer"}),
        ("flux", {"clip_l": (2, 768), "t5xxl": (2, 4096)}, {}, {"comfyui", "onetrainer"}),
        ("flux", {"clip_g": (2, 768), "t5": (2, 4096)}, {}, {"comfyui", "onetrainer"}),
        ("sd1", {"string_to_param.*": (2, 768)}, {**PICKLE, "metadata": {"string_to_token.*": "265", "name": "cat"}},
         ALL - {"onetrainer", "drawthings"}),
        ("sd1", {"string_to_param.*": (2, 768)}, {**PICKLE, "metadata": {"name": "cat"}},
         ALL - {"onetrainer", "invokeai", "drawthings"}),
        ("sd1", {"string_to_param.a": (2, 768), "string_to_param.b": (2, 768)}, {**PICKLE, "metadata": {
            "string_to_token.a": "265"}}, {"comfyui", "invokeai", "kohya"}),
        ("sd1", {"clip_l": (2, 768)}, {**PICKLE, "metadata": {"name": "cat"}}, {"comfyui", "kohya"}),
        ("sdxl", {"clip_l": (2, 768), "clip_g": (2, 1280)}, {**PICKLE, "metadata": {"name": "cat"}}, {
            "comfyui", "invokeai", "kohya", "onetrainer"}),
        ("sd1", {"emb_params": (2, 768)}, {"container": "pickle", "name": "cat.ckpt"}, {
            "invokeai", "diffusers", "kohya"}),
        ("sd1", {"emb_params": (2, 768)}, {"container": "pickle", "name": "cat.safetensors"}, set()),
        ("sd1", {"emb_params": (2, 768)}, {"name": "cat.pt"}, {"diffusers", "drawthings"}),
        ("sd1", {"emb_params": (2, 768)}, {**PICKLE, "names": frozenset(["torch.BoolStorage"])}, {
            "forge", "forge-neo", "reforge", "comfyui", "invokeai", "diffusers", "kohya"}),
        ("sd1", {"0": (2, 768)}, {**PICKLE, "root": "list"}, {"comfyui"}),
        ("sdxl", {"0": (2, 768)}, {**PICKLE, "root": "list"}, set()),
        ("sd1", {"": (2, 768)}, {**PICKLE, "root": "tensor"}, set()),
        ("sd1", {"<cat>": (2, 768)}, {**PICKLE, "root": "ordered"}, {"comfyui", "diffusers", "kohya"}),
        ("sd1", {"<cat>": (2, 768)}, {**PICKLE, "parameters": frozenset(["<cat>"])}, {"comfyui", "diffusers", "kohya"}),
        ("sd1", {"emb_params": (2, 768)}, {**PICKLE, "members": ("x/data.pkl", "x/.format_version")}, {
            "forge", "forge-neo", "reforge", "comfyui", "invokeai", "diffusers", "kohya", "drawthings"}),
        ("sd1", {"string_to_param.*": (2, 768)}, {
            **PICKLE, "metadata": {"string_to_token.*": "265"}, "names": frozenset([
                "torch.nn.modules.container.ParameterDict"])}, {"forge"}),
        ("sd1", {"string_to_param.*": (2, 768)}, REFUSED_ZIP, {"a1111", "forge", "comfyui", "drawthings"}),
        ("sd2", {"string_to_param.*": (2, 1024)}, REFUSED_ZIP, {"a1111", "forge", "comfyui", "drawthings"}),
        ("sd2", {"string_to_param.*": (3, 1024)}, REFUSED_ZIP, {"a1111", "forge", "drawthings"}),
    ],
)  # fmt: skip
def test_a_program_loads_what_it_was_seen_to_load(family, shapes, stored, expected, loads):
    assert loads(family, shapes, **stored) == expected.union(*(KIN.get(name, ()) for name in expected))


@pytest.fixture
def lora(rows, tmp_path):
    """lora("sdxl", "cat.clip_l", ...) gives program -> Reading of a LoRA with such tensors of embeddings."""

    def read(family, *tails, prefix=LORA):
        sizes = {"clip_l": 768, "clip_g": 1280, "clip_h": 1024, "t5": 4096}
        tensors = {prefix: rows(4, 768)}
        for tail in tails:
            key = tail.rpartition(".")[2].removesuffix("_out")
            tensors[f"bundle_emb.{tail}"] = rows(2, sizes.get(key, 768))
        file = Stored(tmp_path / "l.safetensors", tensors)
        return {name: reads_lora(name, file, all_families()[family].widths) for name in programs()}

    return read


def test_embeddings_in_a_lora_work_in_two_programs_and_stop_one(lora):
    found = lora("sdxl", "cat.clip_l", "cat.clip_g")
    assert {name for name, reading in found.items() if "cat" in reading.embeddings} == {"a1111", "sdnext"}
    assert {name for name, reading in found.items() if reading.refusal} == {"diffusers", "forge-neo"}


@pytest.mark.parametrize("tail", ["clip_l", "string_to_param.*", "emb_params"])
def test_every_spelling_for_sd1_works_in_a1111(tail, lora):
    assert list(lora("sd1", f"cat.{tail}")["a1111"].embeddings) == ["cat"]


@pytest.mark.parametrize(
    ("family", "tails", "why"),
    [
        ("sd1", ["cat.clip_l", "cat.clip_l_out"], "the embedding 'cat'"),
        ("sdxl", ["mr. x.clip_l", "mr. x.clip_g"], "the embedding 'mr'"),
        ("sd1", [".clip_l"], "the embedding ''"),
        ("sd1", ["../x.clip_l"], "whole LoRA"),
        ("sd1", ["cat"], "no key"),
        ("sd3", ["cat.clip_l", "cat.clip_g"], "two dots"),
    ],
)
def test_what_costs_a1111_the_whole_lora(family, tails, why, lora):
    prefix = LORA if family != "sd3" else "lora_unet_x.alpha"
    assert why in lora(family, *tails, prefix=prefix)["a1111"].refusal


def test_names_cut_at_the_first_dot_collide(lora):
    reading = lora("sd1", "tok.v1.clip_l", "tok.v2.clip_l")["a1111"]
    assert "tok" in reading.refusal or list(reading.embeddings) == ["tok"]


def test_of_two_names_that_differ_in_case_the_second_is_never_reached(lora):
    reading = lora("sd1", "Cat.clip_l", "cat.clip_l")["a1111"]
    assert (list(reading.embeddings), reading.dropped) == (["Cat"], ("bundle_emb.cat.clip_l",))


def test_forge_refuses_a_lora_with_more_than_twelve_such_tensors(lora):
    twelve = [f"w{number}.clip_l" for number in range(12)]
    assert not lora("sd1", *twelve)["forge"].refusal
    assert "13 tensors" in lora("sd1", *twelve, "x.clip_l")["forge"].refusal


def test_forge_neo_refuses_a_lora_more_than_half_of_which_matches_no_module(rows, tmp_path):
    own = {LORA: rows(4, 768), LORA.replace("down.", "up."): rows(320, 4)}
    bundled = {f"bundle_emb.w{number}.clip_l": rows(1, 768) for number in range(3)}
    half = Stored(tmp_path / "l.safetensors", {**own, **dict(list(bundled.items())[:2])})
    assert not reads_lora("forge-neo", half, {"clip_l": 768}).refusal
    assert "3 of 5 tensors" in reads_lora("forge-neo", Stored(half.path, {**own, **bundled}), {"clip_l": 768}).refusal


def test_sdnext_takes_a_name_without_a_key(lora):
    assert list(lora("sd1", "cat")["sdnext"].embeddings) == ["cat"]


def test_comfyui_reads_the_last_large_tensor_of_a_pickle_that_torch_refuses(rows, tmp_path):
    tensors = {"string_to_param.a": rows(2, 768), "string_to_param.b": rows(3, 768)}
    stored = {key: value for key, value in REFUSED_ZIP.items() if key != "name"}
    reading = reads("comfyui", Stored(tmp_path / "x.pt", tensors, **stored), {"clip_l": 768})
    (vectors,) = reading.embeddings.values()
    assert vectors["clip_l"].shape == (3, 768)


def test_a_name_containing_lora_passes_diffusers_check_and_is_lost(lora):
    reading = lora("sd1", "explora.clip_l")["diffusers"]
    assert (reading.refusal, reading.embeddings) == ("", {})


def test_invokeai_does_not_know_a_flux_lora_with_embeddings(lora):
    assert "cannot be imported" in lora("flux", "cat.clip_l", "cat.t5")["invokeai"].refusal
    assert not lora("sdxl", "cat.clip_l", "cat.clip_g")["invokeai"].refusal


def test_fooocus_joins_no_embeddings_and_needs_both_encoders_in_a_list(rows, tmp_path):
    own = {"bundle_emb.a.clip_l": rows(1, 768), "bundle_emb.b.clip_l": rows(2, 768)}
    (vectors,) = reads("fooocus", Stored(tmp_path / "l.safetensors", own), {"clip_l": 768}).embeddings.values()
    assert bytes(vectors["clip_l"].data) == bytes(own["bundle_emb.a.clip_l"].data)
    half = Stored(tmp_path / "x.pt", {"0": rows(1, 768)}, container="pickle", root="list")
    assert "each text encoder" in reads("fooocus", half, all_families()["sdxl"].widths).refusal
    assert "each text encoder" in reads("comfyui", half, all_families()["sdxl"].widths).refusal


def test_fooocus_refuses_a_lora_with_more_than_twelve_such_tensors(lora):
    twelve = [f"w{number}.clip_l" for number in range(12)]
    assert not lora("sdxl", *twelve)["fooocus"].refusal
    assert "13 tensors" in lora("sdxl", *twelve, "x.clip_l")["fooocus"].refusal


def test_comfyui_joins_all_embeddings_of_a_bundle_in_its_folder_of_embeddings(rows, tmp_path):
    a, b = rows(1, 768), rows(2, 768)
    file = Stored(tmp_path / "l.safetensors", {"bundle_emb.a.clip_l": a, "bundle_emb.b.clip_l": b, LORA: rows(4, 768)})
    (vectors,) = reads("comfyui", file, {"clip_l": 768}).embeddings.values()
    assert bytes(vectors["clip_l"].data) == bytes(a.data) + bytes(b.data)


def test_inspect_says_what_loads_what_is_typed_and_what_breaks(saved, rows):
    path = saved("ema y.safetensors", {"clip_l": rows(2, 768), "clip_g": rows(2, 1280)})
    facts = inspect(path)
    assert (facts["kind"], facts["dialect"], facts["family"], facts["families"]) == (
        "embedding", "encoders", "sdxl", ["sdxl"])  # fmt: skip
    assert facts["embeddings"][0]["vectors"]["clip_g"]["shape"] == [2, 1280]
    answers = {name: (verdict["loads"], verdict["prompt"]) for name, verdict in facts["programs"].items()}
    assert answers["a1111"] == ("yes", "ema y")
    assert answers["comfyui"] == ("partly", "embedding:ema y")
    assert answers["swarmui"] == ("partly", "<embed:ema y>")
    assert answers["fooocus"] == ("partly", "(embedding:ema y:1.0)")
    assert answers["reforge"] == ("yes", "ema y")
    assert answers["diffusers"] == ("no", "")


def test_inspect_sees_zeros_values_that_are_not_finite_and_norms(saved):
    nan = RawTensor("F32", (2, 768), b"\0\0\xc0\x7f" + bytes(3068) + b"\0\0\x80\x3f" * 768)
    facts = inspect(saved("x.safetensors", {"emb_params": nan}))
    vectors = facts["embeddings"][0]["vectors"]["clip_l"]
    assert (vectors["finite"], vectors["norms"]) == (False, [None, 27.712813])
    zero = inspect(saved("z.safetensors", {"emb_params": RawTensor("F32", (1, 768), bytes(3072))}))
    assert zero["programs"]["a1111"]["loads"] == facts["programs"]["a1111"]["loads"] == "no"


@pytest.mark.parametrize(
    ("tensors", "kind", "dialect"),
    [
        ({LORA: (4, 768)}, "lora", "lora"),
        ({LORA: (4, 768), "bundle_emb.cat.clip_l": (2, 768)}, "bundle", "bundle"),
        ({LORA: (4, 768), "emb_params": (2, 768)}, "bundle", "ai-toolkit"),
        ({"weight": (3, 5)}, "other", None),
    ],
)
def test_inspect_tells_loras_bundles_and_other_files_apart(tensors, kind, dialect, saved, rows):
    facts = inspect(saved("x.safetensors", {name: rows(*shape) for name, shape in tensors.items()}))
    assert (facts["kind"], facts["dialect"]) == (kind, dialect)
    assert set(facts["programs"]) == (set() if kind == "other" else ALL)


def test_output_vectors_with_trained_input_vectors_give_a_note(saved, rows):
    facts = inspect(saved("x.safetensors", {"emp_params": rows(1, 768), "emp_params_out": rows(1, 768)}))
    assert "left from an earlier training" in facts["notes"][0]
